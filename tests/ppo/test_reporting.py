"""What comes from transformers.Trainer arrives: the log in tensorboard, checkpoints and the policy on the hub."""

import json
from concurrent.futures import Future
from pathlib import Path

import pytest
from huggingface_hub import HfApi, RepoUrl
from small import trainer

from rlhf_lab.checkpoints import fault

TRL_LOGGED = json.loads(Path(__file__).with_name("trl_1_12.json").read_text(encoding="utf-8"))["logged"]
TRL_LOGGED.remove("step")  # which says at which update the others were


def test_tensorboard_gets_every_metric_at_every_update(tokenizer, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    t = trainer(tokenizer, tmp_path, report_to="tensorboard")
    t.train()
    board = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    for name in TRL_LOGGED:
        written = [(event.step, event.value) for event in board.Scalars(f"train/{name}")]
        logged = [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in t.state.log_history]
        assert written == logged and [step for step, _ in written] == [1, 2], name


def test_checkpoints_and_the_policy_are_pushed(tokenizer, tmp_path, monkeypatch):
    pushed = []

    def upload_folder(self, *, repo_id, folder_path, path_in_repo=None, commit_message, **kwargs):
        files = {path.name for path in Path(folder_path).iterdir()}
        pushed.append((repo_id, path_in_repo, commit_message, files, fault(folder_path)))
        done = Future()  # what a push in the background gives
        done.set_result(None)
        return done

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
    assert "\n- rlhf-lab\n" in card and "\n- ppo\n" in card
