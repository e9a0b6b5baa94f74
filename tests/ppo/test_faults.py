"""What can go wrong in a long run: a kill at any moment, a damaged checkpoint, numbers that are no numbers."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import trainer

from rlhf_lab import checkpoints
from rlhf_lab.errors import UserError

SAVING = {"save_strategy": "steps", "save_steps": 1, "total_episodes": 24}


@pytest.mark.slow
def test_killed_anywhere_and_resumed_it_ends_with_the_very_same_weights(tmp_path):
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("straight") == {"status": 0, "last": True}
    assert len(found) >= 10
    for point, what in found.items():
        assert what["signal"] == signal.SIGKILL, point  # it was really killed there
        assert what["resumed"] == 0 and what["equal"], point
        assert what["kept"] == ["checkpoint-4"], point


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """A folder with three checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    trainer(tokenizer, folder, **SAVING).train()
    return folder


@pytest.mark.parametrize("name", ["ppo_trained.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
@pytest.mark.parametrize("damage", ["truncated", "one byte", "gone"])
def test_a_damaged_checkpoint_is_refused_with_the_name_of_the_last_good_one(trained, tokenizer, tmp_path, name, damage):
    import shutil

    shutil.copytree(trained, tmp_path / "run")
    bad, good = tmp_path / "run" / "checkpoint-3", tmp_path / "run" / "checkpoint-2"
    data = bytearray((bad / name).read_bytes())
    if damage == "truncated":
        (bad / name).write_bytes(data[: len(data) // 2])
    elif damage == "one byte":
        data[len(data) // 2] ^= 1
        (bad / name).write_bytes(data)
    else:
        (bad / name).unlink()
    t = trainer(tokenizer, tmp_path / "run", **SAVING)
    with pytest.raises(UserError) as error:
        t.train(resume_from_checkpoint=str(bad))
    assert str(bad) in str(error.value) and name in str(error.value) and f"Go on from {good}" in str(error.value)
    assert checkpoints.last_good(tmp_path / "run") == good


def test_a_checkpoint_without_its_seal_was_not_finished(trained, tokenizer, tmp_path):
    import shutil

    shutil.copytree(trained / "checkpoint-1", tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / checkpoints.SEAL).unlink()
    with pytest.raises(UserError, match=r"not written to its end.*no good one"):
        trainer(tokenizer, tmp_path, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_of_another_model_is_refused(trained, tokenizer):
    from peft import LoraConfig, get_peft_model
    from small import tiny

    other = get_peft_model(tiny(tokenizer), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    t = trainer(tokenizer, trained, **SAVING)
    t.roles.policy = other
    with pytest.raises(UserError, match="another model"):
        t._load(trained / "checkpoint-1")


def test_a_score_that_is_no_number_stops_with_its_prompt_and_the_checkpoint_before_it(tokenizer, tmp_path):
    calls = []

    def politeness(prompts, completions, **_):
        calls.append(prompts)
        return [1.0] * 7 + [float("nan") if len(calls) == 3 else 1.0]

    t = trainer(tokenizer, tmp_path, politeness, **SAVING)
    with pytest.raises(UserError) as error:
        t.train()
    assert "politeness" in str(error.value) and "score 7 is nan" in str(error.value)
    assert calls[2][7][0]["content"] in str(error.value)
    assert str(tmp_path / "checkpoint-2") in str(error.value)
    assert checkpoints.last_good(tmp_path) == tmp_path / "checkpoint-2"


def test_a_reward_model_that_breaks_stops_with_the_prompt(tokenizer, tmp_path):
    from small import tiny
    from transformers import LlamaForSequenceClassification

    judge = tiny(tokenizer, LlamaForSequenceClassification, seed=1, num_labels=1)
    t = trainer(tokenizer, tmp_path, judge, **SAVING)
    torch.nn.init.constant_(judge.score.weight, float("inf"))
    with pytest.raises(UserError, match=r"update 1, prompt .*the score is (nan|inf|-inf).*start again"):
        t.train()


def test_a_loss_that_is_no_number_stops_before_the_step_with_the_prompt_that_caused_it(tokenizer, tmp_path):
    t = trainer(tokenizer, tmp_path, **SAVING)
    update, guilty = t.update, []

    def poisoned(batch):
        if t.state.global_step == 2:
            batch.advantages[5] = float("nan")
            guilty.append(batch.prompts[5][0]["content"])
        return update(batch)

    t.update = poisoned
    with pytest.raises(UserError) as error:
        t.train()
    assert "the gradient is nan" in str(error.value) and "update 3" in str(error.value)
    assert guilty[0] in str(error.value) and str(tmp_path / "checkpoint-2") in str(error.value)
    assert all(torch.isfinite(parameter).all() for parameter in t._trained().values())
