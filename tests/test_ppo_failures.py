"""The record of PPO's failures: complete, made by its command, and each fault visible where lesson 07 says it is."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from rlhf_lab.figures.rollout import WATCHED
from rlhf_lab.lab import RECORDS
from rlhf_lab.profiles import REPO_ROOT, TINY

SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def record():
    return json.loads((RECORDS / "ppo_failures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recorder():
    sys.path.insert(0, str(Path(REPO_ROOT) / "bench"))
    try:
        import record_ppo_failures
    finally:
        sys.path.pop(0)
    return record_ppo_failures


def late(record, name, curve):
    return [np.mean(run["curves"][curve][-4:]) for run in record["runs"] if run["name"] == name]


def test_it_holds_every_fault_with_three_seeds_its_settings_and_its_date(record, recorder):
    assert sorted((run["name"], run["seed"]) for run in record["runs"]) == sorted(
        (name, seed) for name in recorder.FAULTS for seed in SEEDS
    )
    assert record["settings"].keys() == record["says"].keys() == recorder.FAULTS.keys()
    assert record["date"] and {"torch", "transformers"} <= record["versions"].keys()
    for run in record["runs"]:
        assert len(run["gold"]) == recorder.PROMPTS and set(WATCHED) <= run["curves"].keys()


def test_a_fault_differs_from_the_healthy_run_in_one_setting_or_in_the_engine(record, recorder):
    healthy = record["settings"]["healthy"]
    for name, fault in recorder.FAULTS.items():
        changed = {key for key, value in record["settings"][name].items() if healthy.get(key) != value}
        assert len(changed) + (fault.trainer is not recorder.PPOTrainer) == (name != "healthy"), name
    assert record["settings"]["bold"]["learning_rate"] == pytest.approx(30 * TINY.ppo["learning_rate"])


def test_it_is_small_and_tells_of_no_machine():
    text = (RECORDS / "ppo_failures.json").read_text(encoding="utf-8")
    assert len(text) < 200_000 and "/tmp" not in text and "/work" not in text


def test_the_healthy_runs_are_healthy(record):
    for run in record["runs"]:
        if run["name"] == "healthy":
            curves = run["curves"]
            assert curves["objective/kl"][0] == pytest.approx(0, abs=1e-3)  # policy = reference
            assert np.mean(run["gold"]) > np.mean(record["sft"]["gold"])
            assert all(abs(ratio - 1) < 0.15 for ratio in curves["val/ratio"])
            assert 0 < run["true_kl"] < 8


def test_each_fault_shows_in_its_panel(record):
    def compare(name, curve):
        return list(zip(late(record, name, curve), late(record, "healthy", curve), strict=True))

    assert all(sick > 1.3 * well for sick, well in compare("no_kl", "objective/kl"))
    assert all(kl < 0 for kl in late(record, "negative_kl", "objective/kl"))
    assert all(run["true_kl"] > 0 for run in record["runs"] if run["name"] == "negative_kl")  # a KL never is negative
    assert all(ended == 0 for ended in late(record, "no_eos", "val/num_eos_tokens"))
    assert all(length == TINY.response_length for length in late(record, "no_eos", "completions/mean_length"))
    assert all(sick > 1.3 * well for sick, well in compare("padding", "completions/mean_length"))
    assert all(ended > 24 for ended in late(record, "padding", "val/num_eos_tokens"))
    assert all(sick > well for sick, well in compare("value", "loss/value_avg"))


def test_unmasked_padding_takes_in_what_stands_behind_the_end_and_no_more(recorder):
    """By hand: the engine's own mask ends with the stop token, the fault's at the longest reply of the batch."""
    honest = recorder.engine.response_mask
    responses = torch.tensor([[7, 2, 0, 0], [7, 8, 9, 2]])
    assert honest(responses, 2)[0].sum(1).tolist() == [2, 4]

    def seen(self, rows):
        return recorder.engine.response_mask(responses, 2)

    with patch.object(recorder.PPOTrainer, "rollout", seen):
        mask, ended = object.__new__(recorder.UnmaskedPadding).rollout([])
    assert mask.all() and ended.tolist() == [True, True]
    assert recorder.engine.response_mask is honest
