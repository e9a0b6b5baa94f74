"""What lessons 05 to 08 keep of SmolLM2: the record, the table beside the cell, and what the prose says of both."""

import json
import re

import nbformat
import pytest

from rlhf_lab.evaluate import Interval
from rlhf_lab.lab import RECORDS, results_table
from rlhf_lab.lessons import lessons

LESSONS = {path.name[:2]: path for path in lessons() if path.name[:2] in ("05", "06", "07", "08")}


def recorded(lesson):
    return json.loads((RECORDS / f"{lesson}.json").read_text(encoding="utf-8"))["smol"]


def of(lesson, label):
    value = recorded(lesson)["measured"][label]
    return Interval(**value) if isinstance(value, dict) else value


def prose(lesson):
    cells = nbformat.read(LESSONS[lesson], as_version=4).cells
    return " ".join(" ".join(cell.source for cell in cells if cell.cell_type == "markdown").split())


@pytest.mark.parametrize("lesson", LESSONS)
def test_it_was_run_on_smollm2_and_the_lesson_shows_it_beside_its_own(lesson):
    record = recorded(lesson)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", record["date"]) and "cores" in record["machine"]
    assert {"torch", "transformers", "trl", "peft"} <= set(record["versions"])
    (cell,) = [
        cell
        for cell in nbformat.read(LESSONS[lesson], as_version=4).cells
        if cell.cell_type == "code" and "lab.results(" in cell.source
    ]
    kept = "".join(output.get("text", "") for output in cell.outputs)
    *wanted, dated = results_table("smol", {}, {"smol": record}).splitlines()
    assert "here, tiny" in kept and "recorded, smol" in kept and dated in kept
    shown = {re.split(r"\s{3,}", line)[0]: re.split(r"\s{3,}", line)[-1] for line in kept.splitlines()}
    for line in wanted[1:]:
        label, value = re.split(r"\s{3,}", line)
        assert shown[label] == value


def test_lesson_05_says_what_96_demonstrations_did():
    before, after = of("05", "perplexity, base"), of("05", "perplexity, SFT")
    assert after.high < before.low
    assert f"perplexity falls from {before.value:.0f} to {after.value:.0f}" in prose("05")
    base, sft, teachers = (of("05", f"gold, {who}") for who in ("base", "SFT", "its teachers"))
    assert sft.low < base.value and 2.75 < teachers.value - sft.value < 3
    assert of("05", "ended by itself, SFT").low > 0.8 > 0.2 > of("05", "the same, pad = eos").high


def test_lesson_06_says_what_tempts_a_reward_model_from_96_pairs():
    length = of("06", "tempted: length only")
    assert length.value * 40 == pytest.approx(39) and "in 39 pairs of 40" in prose("06")
    against = [of("06", f"tempted: {what} against gold") for what in ("length", "style")]
    assert all(share.low > 0.7 and abs(share.value - 0.8) < 0.07 for share in against)
    assert f"{of('06', 'reward model, accuracy').value:.2f}" == "0.71" and "accuracy of 0.71" in prose("06")


def test_lesson_07_says_that_gold_fell_while_the_score_rose():
    assert of("07", "gold of PPO").high < of("07", "gold of SFT").low
    assert of("07", "win rate of PPO against SFT, by gold").high < 0.5
    assert f"to {of('07', 'score at the last update'):.2f}, and gold went *down*" in prose("07")


def test_lesson_08_says_that_ordered_pairs_are_not_better_replies():
    assert of("08", "accuracy of the implicit reward").low > 0.5 > of("08", "DPO beats SFT").high
    assert "a tenth of a nat" in prose("08") and round(of("08", "KL to SFT, nats").value, 1) == 0.1
