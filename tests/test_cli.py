"""The command line: help for each command, values typed as the config says, and one small run measured."""

import json

import pytest

from rlhf_lab.cli import _fields
from rlhf_lab.errors import UserError
from rlhf_lab.pipeline import HELPDESK
from rlhf_lab.profiles import DATA_DIR
from rlhf_lab.single import parse_fields

TINY_LLAMA = DATA_DIR / "tiny-llama"

COMMANDS = [
    "doctor",
    "run",
    "pretrain",
    "sft",
    "reward",
    "ppo",
    "dpo",
    "evaluate",
    "compare",
    "chat",
    "annotate",
    "fetch",
    "lab",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0 and f"Example: rlhf-lab {command}" in " ".join(out.split())


@pytest.mark.parametrize("command", ["run", "sft", "reward", "ppo", "dpo"])
def test_common_options(cli, command):
    _, out, _ = cli(command, "--help")
    for option in ("--profile", "--data", "--model", "--seed", "--output", "--force"):
        assert option in out


def test_version(cli):
    assert cli("--version")[1].strip() == "0.1.0"


class Context:
    command_path = "rlhf-lab dpo"

    def __init__(self, *args):
        self.args = list(args)


def test_fields_are_read_in_each_spelling():
    assert _fields(Context("--learning-rate", "1e-4", "--beta=0.2", "--gradient-checkpointing")) == {
        "learning_rate": "1e-4",
        "beta": "0.2",
        "gradient_checkpointing": "true",
    }
    with pytest.raises(UserError, match="stray"):
        _fields(Context("stray"))


def test_fields_get_the_types_of_the_config():
    typed = parse_fields(
        "dpo", {"learning_rate": "1e-4", "max_steps": "7", "beta": "0.2", "precompute_ref_log_probs": "true"}
    )
    assert typed == {"learning_rate": 1e-4, "max_steps": 7, "beta": 0.2, "precompute_ref_log_probs": True}
    assert parse_fields("ppo", {"num_ppo_epochs": "3", "kl_coef": "0.1"}) == {"num_ppo_epochs": 3, "kl_coef": 0.1}


def test_a_stage_of_ones_own_data_is_measured_before_and_after(cli, tmp_path):
    lines = (HELPDESK / "preferences_test.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    data = tmp_path / "mine.json"
    rows = [json.loads(line) for line in lines]
    data.write_text(json.dumps([{"q": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in rows]))
    code, out, err = cli(
        "dpo", "--data", data, "--columns", "prompt=q,chosen=good,rejected=bad", "--train-rows", 16, "--test-rows", 20,
        "--max-steps", 2, "--per-device-train-batch-size", 8, "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert "20 held-out pairs" in out
    report = json.loads((tmp_path / "out" / "held_out.json").read_text())
    for interval in report.values():
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1


def first_rows(name, n, to):
    """The first `n` rows of a help-desk set, in the file `to`."""
    lines = (HELPDESK / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:n]
    to.write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def few_prompts(monkeypatch, tmp_path):
    """Sixteen held-out prompts where the commands look for 512."""
    from rlhf_lab import single

    folder = tmp_path / "helpdesk"
    folder.mkdir()
    first_rows("prompts", 16, folder / "prompts.jsonl")
    monkeypatch.setattr(single, "HELPDESK", folder)


def test_evaluate_prints_gold_by_attribute(cli, few_prompts, tmp_path):
    code, out, err = cli("evaluate", "--output", tmp_path / "kept")
    assert code == 0, err
    report = json.loads((tmp_path / "kept" / "evaluation.json").read_text())
    assert set(report) == {"gold", "helpfulness", "tone", "safety", "cultural_fit", "coherence", "brevity"}
    parts = [interval["value"] for name, interval in report.items() if name != "gold"]
    assert report["gold"]["value"] == pytest.approx(sum(parts))
    assert all(name in out for name in report)


def test_evaluate_on_pairs_of_ones_own(cli, tmp_path):
    first_rows("preferences_test", 24, tmp_path / "pairs.jsonl")
    code, out, err = cli("evaluate", "--data", tmp_path / "pairs.jsonl")
    assert code == 0, err
    assert "24 held-out pairs" in out and "likelier reply is the chosen one" in out


def test_a_model_ties_with_itself(cli, few_prompts, tmp_path):
    code, out, err = cli("compare", TINY_LLAMA, TINY_LLAMA, "--output", tmp_path / "kept")
    assert code == 0, err
    kept = json.loads((tmp_path / "kept" / "comparison.json").read_text())
    assert kept["win_rate"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert "on 16 prompts: 0.50" in out


def test_chat_answers_until_an_empty_line(cli, monkeypatch):
    typed = iter(["Hey, my kettle broke.", ""])
    monkeypatch.setattr("rich.console.Console.input", lambda self, prompt: next(typed))
    code, out, err = cli("chat")
    assert code == 0, err
    assert out.count("llama>") == 1


def test_the_chain_on_pairs_of_ones_own(cli, tmp_path):
    first_rows("preferences_test", 40, tmp_path / "pairs.jsonl")
    few = [f"--{stage}.max-steps=2" for stage in ("sft", "reward", "dpo")]
    code, out, err = cli(
        "run", "--data", tmp_path / "pairs.jsonl", *few, "--ppo.total-episodes=16",
        "--ppo.per-device-train-batch-size=8", "--report-to", "tensorboard", "--output", tmp_path / "mine",
    )  # fmt: skip
    assert code == 0, err
    html = (tmp_path / "mine" / "report.html").read_text(encoding="utf-8")
    assert "Preference accuracy" in html and "dpo: implicit reward" in html
    assert list((tmp_path / "runs" / "tensorboard").rglob("events.out.tfevents.*"))
