"""The README says what the files beside it say: its table of results, its picture, its commands, its profiles."""

import json
import re
import runpy

import pytest

from rlhf_lab.profiles import PROFILES, REPO_ROOT
from rlhf_lab.report import validate_scoreboard

README = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
SEEDS = runpy.run_path(str(REPO_ROOT / "bench" / "seeds.py"))
BOARDS = sorted((REPO_ROOT / "docs" / "scoreboards").glob("tiny-seed*.json"))


def test_the_table_of_seeds_is_that_of_the_kept_scoreboards():
    if BOARDS:
        assert len(BOARDS) == 3
        assert SEEDS["table"]() in README
    else:
        assert "no table of seeds yet" in README


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_the_kept_scoreboards_reach_the_course_s_targets(path):
    """What `make run` must reach on every seed. The figures are of real runs (bench/seeds.py)."""
    board = json.loads(path.read_text(encoding="utf-8"))
    validate_scoreboard(board)
    assert board["sft"]["gold"] > board["base"]["gold"]
    assert board["reward"]["accuracy"] >= 0.95 * board["reward"]["oracle_accuracy"]
    for policy in ("ppo", "dpo"):
        assert board[policy]["win_rate"] >= 0.80 and board[policy]["win_rate_low"] > 0.75
        assert abs(board[policy]["mean_length"] / board["sft"]["mean_length"] - 1) <= 0.30


def test_the_table_of_the_real_llama_is_what_was_kept():
    smol = runpy.run_path(str(REPO_ROOT / "bench" / "smol.py"))
    kept = json.loads(smol["KEPT"].read_text(encoding="utf-8"))
    assert set(kept) == set(smol["STAGES"])
    assert smol["table"](kept) in README


def test_every_file_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("http") or (REPO_ROOT / link).exists(), link


def test_every_command_it_names_exists(cli):
    from rlhf_lab.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"rlhf-lab ([a-z]+)", README))
    assert named <= known and named


def test_every_profile_is_listed():
    assert all(f"`{name}`" in README for name in PROFILES)
