"""The stage cache: nothing trains twice, nothing changed is taken for the same, nothing is lost."""

import dataclasses
import json
import subprocess
import sys

import pytest

from rlhf_lab.errors import UserError
from rlhf_lab.profiles import get_profile
from rlhf_lab.stages.common import RESULT_FILE, build_config, cache_key, run_cached

TINY = get_profile("tiny")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("{}\n")
    return path


def key(data, profile=TINY, settings=None, stage="dpo", code=("stages/dpo.py",)):
    return cache_key(stage, profile, settings or {"seed": 0}, {"data": data}, code)


def test_same_key_for_the_same_thing(data):
    assert key(data) == key(data)


def test_whatever_decides_the_result_changes_the_key(data, tmp_path):
    other_data = tmp_path / "other.jsonl"
    other_data.write_text('{"a": 1}\n')
    keys = [
        key(data),
        key(data, settings={"seed": 1}),
        key(data, settings={"seed": 0, "beta": 0.2}),
        key(data, profile=dataclasses.replace(TINY, lora_r=4)),
        key(data, stage="sft"),
        key(data, code=("stages/sft.py",)),
        key(other_data),
    ]
    assert len(set(keys)) == len(keys)


def test_an_upstream_folder_counts_by_content(tmp_path):
    upstream = tmp_path / "sft"
    upstream.mkdir()
    (upstream / "model.safetensors").write_bytes(b"one")
    first = key(upstream)
    (upstream / RESULT_FILE).write_text('{"seconds": 3}')  # costs are no part of it
    assert key(upstream) == first
    (upstream / "model.safetensors").write_bytes(b"two")
    assert key(upstream) != first


def trained(calls, text="weights"):
    def train(folder):
        calls.append(folder)
        (folder / "model.safetensors").write_text(text)
        return {"loss": 1.0}, [{"loss": 2.0, "step": 1}]

    return train


def test_nothing_trains_twice_unless_forced(tmp_path):
    calls, folder = [], tmp_path / "out"
    first = run_cached(folder, "k", trained(calls))
    again = run_cached(folder, "k", trained(calls))
    assert len(calls) == 1 and not first.cached and again.cached
    assert again.metrics == first.metrics == {"loss": 1.0} and again.history == first.history
    run_cached(folder, "k", trained(calls), force=True)
    run_cached(folder, "other", trained(calls))
    assert len(calls) == 3
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", RESULT_FILE]


def test_a_failed_run_leaves_the_earlier_result_and_nothing_else(tmp_path):
    folder = tmp_path / "out"
    run_cached(folder, "k", trained([], "good"))

    def fail(to):
        (to / "model.safetensors").write_text("half")
        raise UserError("bad row", where="pairs.jsonl, row 2")

    with pytest.raises(UserError):
        run_cached(folder, "new", fail)
    assert (folder / "model.safetensors").read_text() == "good"
    assert json.loads((folder / RESULT_FILE).read_text())["key"] == "k"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_checkpoints_of_an_interrupted_run_wait_for_the_same_key_only(tmp_path):
    folder, seen = tmp_path / "out", []

    def interrupted(to):
        seen.append((to / "checkpoints" / "checkpoint-1").is_dir())
        (to / "checkpoints" / "checkpoint-1").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    for name in ("k", "k", "other"):
        with pytest.raises(KeyboardInterrupt):
            run_cached(folder, name, interrupted)
    assert seen == [False, True, False]
    assert not folder.exists()


def test_other_peoples_files_are_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no stage wrote"):
        run_cached(tmp_path / "out", "k", trained([]))
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_an_unknown_field_is_named():
    from trl import DPOConfig

    with pytest.raises(UserError, match="max_prompt_length"):
        build_config(DPOConfig, {"max_prompt_length": 128}, "dpo")


def test_a_second_process_waits_for_the_first_and_takes_its_result(tmp_path):
    script = """
import sys, time
from pathlib import Path
from rlhf_lab.stages.common import run_cached

def train(folder):
    with open(sys.argv[2], "a") as log:
        log.write("trained\\n")
    time.sleep(1)
    return {"loss": 1.0}, []

print(run_cached(Path(sys.argv[1]), "key", train).metrics)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(tmp_path / "log")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [out for out, _ in outputs] == ["{'loss': 1.0}\n"] * 2, outputs
    assert (tmp_path / "log").read_text() == "trained\n"
