"""The whole chain, a few steps a stage: what it writes, in the shape that was promised, and that it trains once."""

import json
import re

import pytest

from rlhf_lab import pipeline
from rlhf_lab.profiles import get_profile

FEW = {"max_steps": 2, "per_device_train_batch_size": 8, "logging_steps": 1}
SETTINGS = {
    "sft": FEW,
    "reward": FEW,
    "dpo": FEW,
    "ppo": {"total_episodes": 16, "gradient_accumulation_steps": 1, "response_length": 12, "logging_steps": 1},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Run twice in an empty folder on a few rows of the help desk."""
    here = tmp_path_factory.mktemp("chain")
    folder = here / "helpdesk"
    folder.mkdir()
    for name, rows in {"sft": 32, "preferences_train": 32, "preferences_test": 24, "prompts": 12}.items():
        lines = (pipeline.HELPDESK / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(pipeline, "HELPDESK", folder)
        first = pipeline.run(get_profile("tiny"), seed=3, settings=SETTINGS)
        stages = {path.name: path.stat().st_mtime for path in (here / "runs" / "stages").iterdir()}
        second = pipeline.run(get_profile("tiny"), seed=3, settings=SETTINGS)
        again = {path.name: path.stat().st_mtime for path in (here / "runs" / "stages").iterdir()}
    return here, first, second, stages, again


def test_the_scoreboard_has_the_promised_shape(small):
    here, first, _, _, _ = small
    board = json.loads((here / "runs" / "tiny-seed3" / "scoreboard.json").read_text())
    assert board == first.scoreboard
    assert set(board) == {
        "profile", "seed", "versions", "base", "sft", "reward", "ppo", "dpo", "seconds", "peak_memory_mb",
    }  # fmt: skip
    assert set(board["reward"]) == {"accuracy", "oracle_accuracy", "ece"}
    for policy in ("ppo", "dpo"):
        names = {"gold", "win_rate", "win_rate_low", "win_rate_high", "kl", "mean_length"}
        assert set(board[policy]) == names
        assert 0 <= board[policy]["win_rate_low"] <= board[policy]["win_rate"] <= board[policy]["win_rate_high"] <= 1
    parts = [board["seconds"][stage] for stage in board["seconds"] if stage != "total"]
    assert board["seconds"]["total"] == pytest.approx(sum(parts), abs=0.2)


def test_nothing_trains_twice(small):
    _, first, second, stages, again = small
    assert stages == again and len(stages) == 5
    assert first.scoreboard == second.scoreboard


def test_the_report_stands_alone(small):
    here, first, _, _, _ = small
    html = (here / first.report).read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']https?:", html)
    images = re.findall(r"<img[^>]*>", html)
    assert images and all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    assert list((here / first.report).parent.joinpath("figures").glob("*.png"))
    evaluation = json.loads((here / first.report).parent.joinpath("evaluation.json").read_text())
    assert len(evaluation["samples"]) == 6
    for sample in evaluation["samples"]:
        assert set(sample["replies"]) == {"base", "sft", "ppo", "dpo"}
