"""What the Llama lessons share: rows by profile, stages trained once, results shown beside recorded ones."""

import json
import sys
from types import SimpleNamespace

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rlhf_lab import checks, fetch, lab, lessons, pipeline
from rlhf_lab.checks import check_model_dir
from rlhf_lab.data import load_demonstrations, load_preferences
from rlhf_lab.errors import UserError
from rlhf_lab.evaluate import Interval
from rlhf_lab.lab import ROWS, Lab, results_table
from rlhf_lab.profiles import DATA_DIR, PROFILES, get_profile
from rlhf_lab.stages import common, dpo, ppo, reward, sft
from rlhf_lab.stages.common import StageResult

HELPDESK = DATA_DIR / "helpdesk"
STAGES = {"sft": sft, "reward": reward, "ppo": ppo, "dpo": dpo}


@pytest.fixture
def asked(monkeypatch):
    """Stages that note what they were asked for and train nothing: {stage: (profile, data, inputs, seed, settings)}."""
    seen = {}

    def stand_in(name):
        def run(profile, data, inputs, output=None, seed=0, settings=None, force=False):
            seen[name] = SimpleNamespace(profile=profile, data=data, inputs=inputs, seed=seed, settings=settings)
            return StageResult(DATA_DIR / name, {}, [], 0.0, 0.0, name)

        return run

    for name, module in STAGES.items():
        monkeypatch.setattr(module, "run", stand_in(name))
    return seen


@pytest.fixture
def smol(monkeypatch, tmp_path):
    """No download: the folder of SmolLM2 is some folder."""
    monkeypatch.setattr("rlhf_lab.single.fetch", lambda name: tmp_path / name)
    return tmp_path / "smol"


def test_none_is_the_tiny_llama():
    tiny = Lab()
    assert tiny.profile is get_profile("tiny") and Lab(None).seed == 0
    assert check_model_dir(tiny.base)["num_hidden_layers"] == 5
    assert tiny.tokenizer.pad_token_id != tiny.tokenizer.eos_token_id


def test_an_unknown_profile_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"unknown profile 'llama-3b'.*Choose one of: tiny, smol, llama-1b"):
        Lab("llama-3b")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can run it")
def test_a_profile_that_this_machine_cannot_run_is_refused_before_anything_loads(monkeypatch):
    monkeypatch.setattr(fetch, "fetch_model", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(UserError, match="profile llama-1b: needs a GPU"):
        Lab("llama-1b")


def test_tiny_reads_every_row():
    tiny = Lab()
    held = [tiny.demonstrations, tiny.pairs, tiny.test_pairs, tiny.prompts]
    for rows, file in zip(held, ("sft", "preferences_train", "preferences_test", "prompts"), strict=True):
        assert len(rows) == len((HELPDESK / f"{file}.jsonl").read_text(encoding="utf-8").splitlines())
    assert tiny.prompts[0][0]["role"] == "user" and set(tiny.pairs[0]) >= {"prompt", "chosen", "rejected"}


def test_a_larger_llama_reads_fewer_of_the_same_rows(smol):
    few = Lab("smol")
    assert len(few.demonstrations) == ROWS["smol"]["sft"] and len(few.pairs) == ROWS["smol"]["reward"]
    assert len(few.test_pairs) == ROWS["smol"]["test_pairs"] and len(few.prompts) == ROWS["smol"]["prompts"]
    everything = Lab()
    assert all(row in everything.pairs for row in few.pairs)
    assert [dict(row) for row in few.pairs] == [dict(row) for row in Lab("smol").pairs], "the same each time"


def test_each_stage_stands_on_the_one_before(asked):
    tiny = Lab(seed=3)
    tiny.ppo(kl_coef=0.5), tiny.dpo()
    assert asked["sft"].inputs == {"model": tiny.base}
    assert asked["reward"].inputs == {"model": DATA_DIR / "sft"}
    assert asked["ppo"].inputs == {"model": DATA_DIR / "sft", "reward": DATA_DIR / "reward"}
    assert asked["dpo"].inputs == {"model": DATA_DIR / "sft"}
    assert asked["ppo"].settings == {"kl_coef": 0.5} and asked["sft"].settings == {}
    assert {seen.seed for seen in asked.values()} == {3}


def test_stages_of_smol_train_on_its_rows(asked, smol):
    Lab("smol").ppo(), Lab("smol").dpo()
    assert {name: len(asked[name].data) for name in STAGES} == {name: ROWS["smol"][name] for name in STAGES}
    assert asked["sft"].inputs == {"model": str(smol)} and {"prompt"} <= set(asked["ppo"].data[0])


def test_make_run_and_the_lessons_train_nothing_twice(monkeypatch, tmp_path):
    """The keys of both are the same, stage for stage: what `make run` left, the lessons find."""
    keys = {}

    def remember(whose):
        def cached(folder, key, train, force=False):
            keys.setdefault(whose, {}).setdefault(key, folder.name)
            folder = DATA_DIR / "tiny-llama"  # a folder whose content goes into the keys of the stages that follow
            return StageResult(folder, {}, [], 0.0, 0.0, key)

        return cached

    monkeypatch.setattr(common, "run_cached", remember("lab"))
    tiny = Lab()
    tiny.ppo(), tiny.dpo()
    monkeypatch.setattr(common, "run_cached", remember("make run"))

    def stop(*_):
        raise KeyboardInterrupt  # evaluation comes next, and is not the lessons'

    monkeypatch.setattr(pipeline, "run_cached", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(get_profile("tiny"), output=tmp_path)
    assert keys["lab"] == keys["make run"] and len(keys["lab"]) == 4


def test_models_are_named_or_given(asked, monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr("rlhf_lab.models.load_policy", lambda path, profile: loaded.append(("policy", path, profile)))
    monkeypatch.setattr("rlhf_lab.models.load_reward_model", lambda path, p: loaded.append(("judge", path, p)))
    tiny = Lab()
    other = StageResult(tmp_path, {}, [], 0.0, 0.0, "other")
    for which in ("base", "sft", "ppo", "dpo", other, tmp_path / "mine"):
        tiny.policy(which)
    tiny.judge(), tiny.judge("reward"), tiny.judge(other)
    paths = [DATA_DIR / "sft", DATA_DIR / "ppo", DATA_DIR / "dpo", tmp_path, tmp_path / "mine"]
    assert [path for kind, path, _ in loaded if kind == "policy"] == [tiny.base, *paths]
    assert [path for kind, path, _ in loaded if kind == "judge"] == [DATA_DIR / "reward", DATA_DIR / "reward", tmp_path]
    assert {profile.name for *_, profile in loaded} == {"tiny"}


# --- gated weights ------------------------------------------------------------------------------------------------


@pytest.fixture
def with_gpu(monkeypatch):
    """A machine that could run any profile."""
    monkeypatch.setattr(checks, "check_profile_machine", lambda profile: None)


def test_gated_weights_that_can_be_had_keep_the_profile(with_gpu, monkeypatch, tmp_path):
    def have(hub_id):
        return tmp_path / hub_id.partition("/")[2]

    monkeypatch.setattr(fetch, "fetch_model", have)
    monkeypatch.setattr("rlhf_lab.single.fetch_model", have)
    gated = Lab("llama-1b")
    assert gated.profile is get_profile("llama-1b") and gated.base == str(tmp_path / "Llama-3.2-1B")


@pytest.mark.parametrize("name", [name for name, profile in PROFILES.items() if profile.stand_in])
def test_a_stand_in_comes_with_its_own_settings_and_rows(with_gpu, monkeypatch, capsys, smol, name):
    def refuse(hub_id):
        raise UserError("the model is gated", where=hub_id, fix="Accept its licence")

    monkeypatch.setattr(fetch, "fetch_model", refuse)
    stood_in = Lab(name)
    said = capsys.readouterr().out
    assert f"{get_profile(name).model}: the model is gated" in said and "stand-in, profile 'smol'" in said
    assert stood_in.profile is get_profile("smol") and stood_in.base == str(smol)
    assert len(stood_in.pairs) == ROWS["smol"]["reward"]


# --- results ------------------------------------------------------------------------------------------------------


@pytest.fixture
def records(monkeypatch, tmp_path):
    monkeypatch.setattr(lab, "RECORDS", tmp_path / "records")
    (tmp_path / "records").mkdir()
    return tmp_path / "records"


MEASURED = {"accuracy": Interval(0.75, 0.7, 0.8), "seconds": 1234.5, "KL, nats": 2.345}


def test_results_without_a_record_are_this_runs_alone(records, capsys, monkeypatch):
    monkeypatch.delenv(lab.RECORDING, raising=False)
    Lab().results("07", MEASURED)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["here,", "tiny"]
    assert lines == ["accuracy   0.75 [0.70, 0.80]", "seconds    1234", "KL, nats   2.35"] or "2.34" in lines[2]
    assert list(records.iterdir()) == []


def test_results_are_recorded_when_the_lesson_is_run_to_record(records, capsys, monkeypatch, smol):
    monkeypatch.setenv(lab.RECORDING, "smol")
    Lab("smol").results("07", MEASURED)
    kept = json.loads((records / "07.json").read_text())["smol"]
    assert kept["measured"]["accuracy"] == {"value": 0.75, "low": 0.7, "high": 0.8}
    assert kept["date"].count("-") == 2 and "cores" in kept["machine"] and "torch" in kept["versions"]

    monkeypatch.delenv(lab.RECORDING)
    capsys.readouterr()
    Lab().results("07", {"accuracy": Interval(0.9, 0.88, 0.92)})
    said = capsys.readouterr().out
    assert "here, tiny" in said and "recorded, smol" in said and "0.90 [0.88, 0.92]" in said
    assert "0.75 [0.70, 0.80]" in said and f"smol: recorded {kept['date']}" in said
    assert list(json.loads((records / "07.json").read_text())) == ["smol"], "shown, not kept"


def test_a_measure_that_one_run_lacks_is_left_blank():
    kept = {"smol": {"date": "2026-11-26", "machine": "2 cores", "versions": {"torch": "2.13"}, "measured": {"b": 2.0}}}
    lines = results_table("tiny", {"a": 1.0}, kept).splitlines()
    assert [line.split() for line in lines[1:3]] == [["a", "1.00"], ["b", "2.00"]]
    assert lines[2].index("2.00") > lines[1].index("1.00"), "each under its own heading"
    assert lines[3] == "smol: recorded 2026-11-26, 2 cores; torch 2.13"


# --- a lesson on another Llama ------------------------------------------------------------------------------------


@pytest.fixture
def lesson(tmp_path):
    """A lesson whose one cell writes down what it was run with."""

    def make(number="99"):
        seen = str(tmp_path / "seen")
        note = f"import os\nopen({seen!r}, 'w').write(PROFILE + ' ' + os.environ['RLHF_LAB_RECORD'])"
        cells = [new_code_cell(lessons.colab_cell(number)), new_markdown_cell("# 99 · A lesson"), new_code_cell(note)]
        path = tmp_path / f"{number}_a_lesson.ipynb"
        nbformat.write(new_notebook(cells=cells), path)
        return path

    return make


def test_a_lesson_is_recorded_on_another_llama_and_its_file_stays(lesson, monkeypatch, tmp_path):
    path = lesson()
    before = path.read_bytes()
    monkeypatch.setattr(sys, "argv", ["lessons", "--record", "smol", str(path)])
    lessons.main()
    assert (tmp_path / "seen").read_text() == "smol smol"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("number", "profile", "reason"),
    [
        ("99", "llama-3b", "unknown profile 'llama-3b'"),
        ("99", "", "unknown profile ''"),
        ("03", "smol", "sets no PROFILE"),
    ],
)
def test_a_recording_that_cannot_be_is_refused_at_once(lesson, monkeypatch, tmp_path, number, profile, reason):
    monkeypatch.setattr(sys, "argv", ["lessons", "--record", profile, str(lesson(number))])
    with pytest.raises(SystemExit, match=reason):
        lessons.main()
    assert not (tmp_path / "seen").exists()


def test_rows_of_pairs_and_demonstrations_are_as_their_loaders_give_them():
    tiny = Lab()
    assert tiny.demonstrations == load_demonstrations(HELPDESK / "sft.jsonl")
    assert tiny.pairs == load_preferences(HELPDESK / "preferences_train.jsonl")
