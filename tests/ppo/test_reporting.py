"""What comes from transformers.Trainer arrives: the log in tensorboard, checkpoints and the policy on the hub."""

import pytest
from huggingface_hub import HfApi, RepoUrl
from small import trainer

from rlhf_lab.checkpoints import fault

# As TRL 1.12's PPOTrainer logs them.
METRICS = {
    "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
    "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg",
    "val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode", "eps",
}  # fmt: skip


def test_tensorboard_gets_every_metric_at_every_update(tokenizer, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    t = trainer(tokenizer, tmp_path, report_to="tensorboard")
    t.train()
    board = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    assert {f"train/{name}" for name in METRICS} <= set(board.Tags()["scalars"])
    for name in METRICS:
        written = [(event.step, event.value) for event in board.Scalars(f"train/{name}")]
        logged = [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in t.state.log_history]
        assert written == logged and [step for step, _ in written] == [1, 2], name


class Done:
    """A finished upload."""

    def is_done(self):
        return True

    def done(self):
        return True

    def result(self):
        return None


def test_checkpoints_and_the_policy_are_pushed(tokenizer, tmp_path, monkeypatch):
    pushed = []

    def upload_folder(self, *, repo_id, folder_path, path_in_repo=None, commit_message, **kwargs):
        files = {path.name for path in tmp_path.__class__(folder_path).iterdir()}
        pushed.append((repo_id, path_in_repo, commit_message, files, fault(folder_path)))
        return Done()

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **kwargs: RepoUrl(f"https://huggingface.co/{name}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    t = trainer(
        tokenizer, tmp_path, push_to_hub=True, hub_model_id="someone/helpdesk-ppo", hub_strategy="checkpoint",
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    t.train()
    t.push_to_hub()
    assert {repo for repo, *_ in pushed} == {"someone/helpdesk-ppo"}
    assert [(where, message) for _, where, message, *_ in pushed] == [
        (None, "Training in progress, step 1"),
        ("last-checkpoint", "Training in progress, step 1, checkpoint"),
        (None, "Training in progress, step 2"),
        ("last-checkpoint", "Training in progress, step 2, checkpoint"),
        (None, "End of training"),
    ]
    for _, where, _, files, damage in pushed:
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files
        assert where is None or damage is None  # what is fetched from there can be resumed from
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- rlhf-lab" in card and "- ppo" in card
