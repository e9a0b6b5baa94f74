"""The recording of lesson 06: its statistics by hand, and that the kept file is what they make of it."""

import json
import runpy

import numpy as np
import pytest
from scipy.stats import linregress

from rlhf_lab.data import load_preferences
from rlhf_lab.exercises.exercise import catalogue
from rlhf_lab.lab import HELPDESK, RECORDS
from rlhf_lab.profiles import REPO_ROOT

BENCH = runpy.run_path(str(REPO_ROOT / "bench" / "record_reward.py"))
RECORD = json.loads((RECORDS / "reward_scaling.json").read_text(encoding="utf-8"))
KEY = ("kind", "pairs", "seed", "start", "epochs", "flip_rate")


@pytest.fixture(scope="module")
def held_out():
    return load_preferences(HELPDESK / "preferences_test.jsonl")[: BENCH["TEST_PAIRS"]]


def run(pairs, seed, right):
    return {"pairs": pairs, "seed": seed, "right": right}


def test_the_slope_is_that_of_least_squares_on_doublings():
    runs = [run(100, 0, "1100"), run(200, 0, "1110"), run(400, 0, "111="), run(100, 1, "1000"), run(200, 1, "1110")]
    expected = linregress(np.log2([100, 200, 400, 100, 200]), [0.5, 0.75, 0.875, 0.25, 0.75]).slope
    found = BENCH["slope"](runs)
    assert found.value == pytest.approx(expected) and found.low <= found.value <= found.high
    flat = BENCH["slope"]([run(n, s, "1100") for n in (100, 200) for s in (0, 1)])
    assert (flat.value, flat.low, flat.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_advantage_is_matched_by_seed():
    ours, theirs = [run(9, 0, "11"), run(9, 1, "10")], [run(9, 1, "10"), run(9, 0, "10")]
    assert BENCH["advantage"](ours, theirs).value == 0.25  # one pair in four is right more often
    same = BENCH["advantage"](ours, ours)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_noise_is_counted_exactly_and_its_ceiling_is_that_of_the_exercise(held_out):
    gaps = BENCH["gold_gaps"](held_out)
    found = BENCH["against_noise"](gaps, held_out, 0.15)
    assert found["gold"] == 1.0  # margins that are gold's own
    assert found["label"] == pytest.approx(found["ceiling"])
    ceiling = catalogue()["oracle_ceiling"].reference(gaps, BENCH["ANNOTATOR"].temperature, 0.15)
    assert found["ceiling"] == pytest.approx(ceiling, abs=1e-4)
    assert BENCH["against_noise"](-gaps, held_out, 0.15)["gold"] == 0.0


def test_relabelling_turns_as_many_labels_as_the_annotator_would(held_out):
    gaps = BENCH["gold_gaps"](held_out)
    expected = 1 / (1 + np.exp(-gaps / BENCH["ANNOTATOR"].temperature))
    for flip_rate in (0.0, 0.4):
        kept = [
            row["chosen"] == new["chosen"]
            for row, new in zip(held_out, BENCH["relabelled"](held_out, flip_rate, 0), strict=True)
        ]
        share = np.mean(expected * (1 - flip_rate) + (1 - expected) * flip_rate)
        assert np.mean(kept) == pytest.approx(share, abs=4 * 0.5 / np.sqrt(len(kept)))


def test_the_record_holds_every_run_of_the_plan_once():
    made = [tuple(run[name] for name in KEY) for run in RECORD["runs"]]
    assert sorted(map(str, made)) == sorted(str(tuple(run[name] for name in KEY)) for run in BENCH["plan"]())
    assert RECORD["settings"]["held_out_pairs"] == BENCH["TEST_PAIRS"]


def test_what_the_record_states_follows_from_its_runs(held_out):
    for recorded in RECORD["runs"]:
        assert len(recorded["right"]) == len(held_out)
        assert recorded["held_out"]["accuracy"] == pytest.approx(BENCH["outcomes"](recorded).mean(), abs=1e-4)
    summary = BENCH["summary"](RECORD["runs"])
    for name in ("slope", "slope_from_500"):
        assert RECORD[name] == pytest.approx(summary[name], abs=1e-9)
    for size, found in summary["sft_over_base"].items():
        assert RECORD["sft_over_base"][size] == pytest.approx(found, abs=1e-9)
    gaps = BENCH["gold_gaps"](held_out)
    assert RECORD["oracle"]["value"] == pytest.approx(np.mean((gaps > 1e-9) + 0.5 * (np.abs(gaps) <= 1e-9)))


def test_accuracy_grows_with_the_logarithm_of_the_data_below_the_oracle():
    assert RECORD["slope"]["low"] > 0
    mean = {}
    for recorded in RECORD["runs"]:
        if recorded["kind"] == "data":
            mean.setdefault(recorded["pairs"], []).append(recorded["held_out"]["accuracy"])
    assert len(mean) == 6 and max(map(np.mean, mean.values())) <= RECORD["oracle"]["value"]
