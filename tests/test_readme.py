"""The README says what the files beside it say: its table of results, its picture, its commands, its profiles."""

import json
import re
import runpy

import numpy as np
import pytest

from rlhf_lab.profiles import PROFILES, REPO_ROOT
from rlhf_lab.report import validate_scoreboard

README = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
SEEDS = runpy.run_path(str(REPO_ROOT / "bench" / "seeds.py"))
BOARDS = sorted((REPO_ROOT / "docs" / "scoreboards").glob("tiny-seed*.json"))


def test_the_table_of_seeds_is_that_of_the_kept_scoreboards():
    assert len(BOARDS) == 3
    for path in BOARDS:
        validate_scoreboard(json.loads(path.read_text(encoding="utf-8")))
    assert SEEDS["table"]() in README


def test_every_target_is_reached_and_the_readme_lists_no_miss():
    assert SEEDS["missed"]() == []
    assert "- Seed " not in README


def test_a_missed_target_is_noticed(tmp_path):
    """By hand: each limit just missed, and just met."""
    good = {"gold": 2.0, "win_rate": 0.80, "win_rate_low": 0.751, "win_rate_high": 0.84, "kl": 1.0, "mean_length": 38.9}
    board = {"seed": 7, "base": {"gold": 0.5}, "sft": {"gold": 0.6, "mean_length": 30.0},
             "reward": {"accuracy": 0.855, "oracle_accuracy": 0.9, "ece": 0.0}, "ppo": good, "dpo": good}  # fmt: skip
    file = tmp_path / "tiny-seed7.json"
    file.write_text(json.dumps(board))
    assert SEEDS["missed"](tmp_path) == []
    bad = good | {"win_rate_low": 0.75, "mean_length": 39.1}
    reward = {"accuracy": 0.854, "oracle_accuracy": 0.9}
    file.write_text(json.dumps(board | {"base": {"gold": 0.6}, "reward": reward, "ppo": bad, "dpo": bad}))
    assert len(SEEDS["missed"](tmp_path)) == 6


def test_the_table_of_the_real_llama_is_what_was_kept():
    smol = runpy.run_path(str(REPO_ROOT / "bench" / "smol.py"))
    kept = json.loads(smol["KEPT"].read_text(encoding="utf-8"))
    assert tuple(kept) == smol["STAGES"]
    assert smol["table"](kept) in README


def test_the_table_of_ppo_beside_trl_is_what_was_measured():
    bench = runpy.run_path(str(REPO_ROOT / "bench" / "ppo_vs_trl.py"))
    assert bench["table"](json.loads(bench["RESULTS"].read_text(encoding="utf-8"))) in README


def test_the_table_of_ppo_against_the_frontier_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(REPO_ROOT / "bench")
    bench = runpy.run_path(str(REPO_ROOT / "bench" / "ppo_quality.py"))
    kept = json.loads(bench["RESULTS"].read_text(encoding="utf-8"))
    assert bench["table"](kept) in README
    ours: dict[float, list] = {}
    for run in kept["runs"]:
        assert run["share"] == pytest.approx(bench["share"](run, kept["frontier"]))
        if run["engine"] == "ours":
            ours.setdefault(run["kl_coef"], []).append((run["share"], run["kl"]))
    reached = [np.median(runs, axis=0) for runs in ours.values() if len(runs) == 3]
    assert any(share >= 0.8 and 1 <= kl <= 3 for share, kl in reached)


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
