"""Scripts written for TRL 1.12's PPOTrainer run here with one import changed.

script_for_trl.py asks what TRL's own two scripts ask. TRL's own run too where TRL_EXAMPLES names the folder `examples`
of a checkout of TRL 1.12 (its package does not hold them): docs/from_trl.md has the commands.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small import PROMPTS, tiny
from transformers import LlamaForSequenceClassification

HERE = Path(__file__).parent
TRL_EXAMPLES = os.environ.get("TRL_EXAMPLES")
TRL_LOGGED = set(json.loads((HERE / "trl_1_12.json").read_text(encoding="utf-8"))["logged"])
OLD, NEW = "from trl.experimental.ppo import PPOConfig, PPOTrainer", "from rlhf_lab.ppo import PPOConfig, PPOTrainer"
SPLITS = ("train", "validation", "descriptiveness")
TRLS_OWN = pytest.mark.skipif(not TRL_EXAMPLES, reason="set TRL_EXAMPLES to the examples of TRL 1.12")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """What the scripts read, by relative paths: models `sft` and `reward`, data set `prompts`."""
    root = tmp_path_factory.mktemp("scripts")
    for name, model in (
        ("sft", tiny(tokenizer)),
        ("reward", tiny(tokenizer, LlamaForSequenceClassification, seed=1, num_labels=1)),
    ):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "prompts").mkdir()
    for split in SPLITS:  # one script keeps the last 100 rows for evaluation
        rows = "".join(json.dumps({"prompt": f"{prompt} {n}"}) + "\n" for n in range(28) for prompt in PROMPTS)
        (root / "prompts" / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    files = "".join(f"  - {{split: {split}, path: {split}.jsonl}}\n" for split in SPLITS)
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
    (root / "prompts" / "README.md").write_text(card, encoding="utf-8")
    return root


def with_our_import(name: str, folder: Path) -> Path:
    if name == "script_for_trl.py":
        source = HERE / name
    else:
        source = next(Path(TRL_EXAMPLES).resolve().rglob(name))
    before = source.read_text(encoding="utf-8").splitlines()
    after = [NEW if line == OLD else line for line in before]
    assert sum(a != b for a, b in zip(after, before, strict=True)) == 1
    path = folder / name
    path.write_text("\n".join(after) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("peft", [False, True], ids=["whole", "peft"])
@pytest.mark.parametrize(
    "name", ["script_for_trl.py", *(pytest.param(f"ppo_{task}.py", marks=TRLS_OWN) for task in ("sentiment", "tldr"))]
)
def test_it_trains_logs_saves_and_shows_completions(name, peft, folder):
    output = folder / f"{name}-{peft}"
    sentiment = name == "ppo_sentiment.py"  # has an evaluation set always, and one split
    settings = (
        "--dataset_name prompts --model_name_or_path sft --sft_model_path sft --reward_model_path reward "
        "--learning_rate 3e-3 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --total_episodes 16 "
        "--missing_eos_penalty 1.0 --stop_token eos --response_length 8 --use_cpu --bf16 False --report_to none "
        f"--logging_steps 1 --save_steps 2 --output_dir {output.name} "
        + ("--dataset_train_split descriptiveness " if sentiment else "--dataset_test_split validation ")
        + ("--use_peft" if peft else "--eval_strategy steps --eval_steps 1 --push_to_hub")
    )
    known = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "COLUMNS": "100"}
    command = [sys.executable, HERE / "without_hub.py", with_our_import(name, folder), *settings.split()]
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    state = json.loads((output / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    updates = [entry for entry in state["log_history"] if "episode" in entry]
    assert [entry["episode"] for entry in updates] == [8, 16]
    assert all(set(entry) >= TRL_LOGGED for entry in updates)
    assert any("eval_objective/scores" in entry for entry in state["log_history"]) != peft

    if peft:
        weights = load_file(output / "adapter_model.safetensors")
        assert all(weight.abs().max() > 0 for key, weight in weights.items() if "lora_B" in key)  # they start at 0
    else:
        weights, before = load_file(output / "model.safetensors"), load_file(folder / "sft" / "model.safetensors")
        assert weights.keys() == before.keys()
        assert all((weights[key] - before[key]).abs().max() > 1e-4 for key in before if "_proj" in key)
        assert f"pushed 'End of training' to someone/{output.name}" in done.stdout
        card = (output / "README.md").read_text(encoding="utf-8")
        assert "on the prompts dataset" in card and "- rlhf-lab\n" in card
    # one table an update and one at the end, where there is a set to show
    assert done.stdout.count("model response") == (3 if sentiment or not peft else 0)
