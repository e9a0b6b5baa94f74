"""What lesson 08 reads: made by a command that is there, consistent in itself, and saying what the lesson says."""

import json

import numpy as np
import pytest

from rlhf_lab.evaluate import Interval
from rlhf_lab.lab import RECORDS
from rlhf_lab.profiles import REPO_ROOT

MEASURES = ("gold", "win_rate", "kl", "accuracy")


@pytest.fixture(scope="module")
def record():
    return json.loads((RECORDS / "dpo.json").read_text(encoding="utf-8"))


def settings_of(record):
    return [found for group in ("beta", "learning_rate", "epochs") for found in record[group].values()]


def test_it_says_how_it_was_made(record):
    script = record["command"].split()[1]
    assert (REPO_ROOT / script).is_file()
    assert set(record["versions"]) == {"torch", "transformers", "trl", "peft", "accelerate"}
    assert len(record["seeds"]) >= 3 and record["date"] > "2026" and record["settings"]["beta"] == 0.15


def test_every_mean_is_that_of_its_seeds_and_lies_in_its_interval(record):
    for found in settings_of(record):
        for name in MEASURES:
            interval = Interval(**found[name])
            assert interval.low <= interval.value <= interval.high
            assert len(found[f"{name}_by_seed"]) == len(record["seeds"])
            assert np.mean(found[f"{name}_by_seed"]) == pytest.approx(interval.value, abs=1e-3)


def test_larger_beta_holds_the_policy_closer_to_the_reference(record):
    betas = list(map(float, record["beta"]))
    kl = [found["kl"]["value"] for found in record["beta"].values()]
    assert betas == sorted(betas) and kl == sorted(kl, reverse=True)
    first, last = (np.array(list(record["beta"].values())[place]["kl_by_seed"]) for place in (0, -1))
    assert (first > last).all()  # on every seed


def test_the_articles_learning_rate_moves_no_adapter(record):
    still = record["learning_rate"]["5e-07"]
    assert abs(still["kl"]["value"]) < 0.01
    assert still["gold"]["low"] <= record["sft"]["gold"]["value"] <= still["gold"]["high"]


def test_at_one_margin_close_pairs_displace_clear_ones_do_not_and_the_sft_term_mends(record):
    def at_margin(run, margin):
        return np.interp(margin, np.subtract(run["chosen"], run["rejected"]), run["chosen"])

    runs = record["displacement"]
    assert all(at_margin(run, 6.0) < 0 for run in runs["close"])
    assert all(at_margin(run, 6.0) > 0 for run in runs["clear"])
    assert all(run["chosen"][-1] > 0 for run in runs["close + SFT"])
    assert sum(run["chosen"][-1] < 0 for run in runs["clear"]) == 2  # pushed on to twice the margin


def test_what_is_broken_looks_as_it_is_taught(record):
    curves = {fault: run["curve"] for fault, run in record["broken"].items()}
    for fault in ("healthy", "swapped", "follows", "rate"):
        assert curves[fault]["loss"][0] == pytest.approx(0.6931, abs=1e-3)
    assert curves["wrong"]["loss"][0] != pytest.approx(0.6931, abs=0.01)
    assert np.allclose(curves["follows"]["loss"], 0.6931, atol=1e-3)
    assert min(curves["follows"]["grad_norm"]) > 0.01
    assert record["broken"]["swapped"]["accuracy"]["high"] < 0.5 < record["broken"]["healthy"]["accuracy"]["low"]
