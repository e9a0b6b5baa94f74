"""What stages take, measured beside what rlhf_lab.memory predicts: data/records/memory.json.

    python bench/record_memory.py [CASE ...]

Each case trains a stage for a step or two in a process of its own, on rows of known lengths, and keeps that process's
largest resident set; freed memory goes back to the system meanwhile, but for the case "heap". The real profiles' Llamas
are shrunk to one layer, with random weights; SmolLM2 is the true one (`rlhf-lab fetch smol`). tests/test_memory.py
holds the prediction to these numbers. About 15 minutes on one core.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

from rlhf_lab.files import write_at_once
from rlhf_lab.memory import STAGES, LlamaShape, peak_resident_mb, return_freed_memory
from rlhf_lab.profiles import get_profile
from rlhf_lab.shrunk import keep_weights_in_place, on_cpu, shrunk_model
from rlhf_lab.stages.common import library_versions

RECORD = Path(__file__).resolve().parent.parent / "data" / "records" / "memory.json"
SHRUNK = {"llama-1b": 128256, "llama-2-7b": 32000, "llama-8b": 16000}  # vocabulary; the 8B's whole one takes 4 GB
LONGER, HEAP = "smol/sft/160", "smol/sft/heap"  # 160 tokens; and those as glibc manages memory by itself
CHECKPOINTED = "smol/sft/checkpointed"
CASES = [
    "libraries",
    *(f"{name}/{stage}" for name in ("smol", *SHRUNK) for stage in STAGES),
    CHECKPOINTED,
    LONGER,
    HEAP,
]
LENGTH, REPLY = 96, 24


def rows(stage: str, tokenizer, length: int, n: int = 16) -> list[dict]:
    """Rows of about `length` tokens, for PPO of prompt alone; every fourth is shorter, so that there is padding."""
    return [_row(tokenizer, length - 8 * (i % 4 == 3), stage) for i in range(n)]


def _row(tokenizer, length: int, stage: str) -> dict:
    def size(messages) -> int:
        return len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])

    prompt = [{"role": "user", "content": "the kettle broke"}]
    if stage == "ppo":
        while size(prompt) < length:
            prompt[0]["content"] += " again"
        return {"prompt": prompt}
    reply = {"role": "assistant", "content": "I have refunded"}
    while size([*prompt, reply]) < length:
        reply["content"] += " again"
    if stage == "sft":
        return {"prompt": prompt, "completion": [reply]}
    return {"prompt": prompt, "chosen": [reply], "rejected": [{**reply, "content": reply["content"][:-1] + "."}]}


def model_of(name: str, work: Path) -> str:
    """The folder of a case's model, made if need be."""
    if name == "smol":
        from rlhf_lab.fetch import fetch

        return str(fetch("smol"))
    folder = work / name / "model"
    return str(folder if folder.exists() else shrunk_model(name, folder, vocab_size=SHRUNK[name]))


def measure(case: str, work: Path) -> dict:
    """Run one case in this process: what was run, and its peak."""
    from rlhf_lab.data import check_tokens
    from rlhf_lab.models import load_tokenizer
    from rlhf_lab.stages import dpo, ppo, reward, sft

    if case == "libraries":  # trl's names load what they need when first asked for
        from peft import get_peft_model  # noqa: F401
        from transformers import LlamaForCausalLM  # noqa: F401
        from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: F401

        from rlhf_lab.ppo import PPOTrainer  # noqa: F401

        return {"measured_mb": round(peak_resident_mb(), 1)}
    keep_weights_in_place()
    if case != HEAP:
        return_freed_memory()
    name, stage = case.split("/")[:2]
    checkpointing = case.endswith("checkpointed")
    model = model_of(name, work)
    tokenizer = load_tokenizer(model)
    length = LENGTH - REPLY if stage == "ppo" else 160 if case in (LONGER, HEAP) else LENGTH
    data = rows(stage, tokenizer, length)
    made = max(check_tokens(data, tokenizer, 2 * LENGTH, case))
    sizes = {"max_length": 2 * LENGTH, "response_length": REPLY}
    profile = get_profile(name) if name == "smol" else on_cpu(name, model)
    profile = dataclasses.replace(profile, **sizes)
    settings = {"gradient_checkpointing": checkpointing, "logging_steps": 1, "max_steps": 1}
    inputs = {"model": model}
    if stage == "ppo":
        settings |= {"max_steps": -1, "total_episodes": 16, "gradient_accumulation_steps": 2, "num_ppo_epochs": 1}
        inputs["reward"] = str(work / name / "reward")
        made += REPLY
    else:
        settings["gradient_accumulation_steps"] = 1
    module = {"sft": sft, "reward": reward, "ppo": ppo, "dpo": dpo}[stage]
    module.run(profile, data, inputs, work / name / stage, settings=settings, force=True)
    return {
        "batch": getattr(profile, stage)["per_device_train_batch_size"],
        "length": made,
        "reply_length": REPLY,
        "vocab_size": LlamaShape.of(model).vocab_size,
        "settings": settings,
        "measured_mb": round(peak_resident_mb(), 1),
    }


def run(case: str, work: Path) -> dict:
    """`measure` in a process of its own."""
    name, stage = (case.split("/") + [""])[:2]
    if stage == "ppo" and not (work / name / "reward").exists():
        run(f"{name}/reward", work)
    result = work / "result.json"
    command = [sys.executable, __file__, "--measure", case, str(work), str(result)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(result.read_text(encoding="utf-8"))


def main() -> None:
    """Run the cases named, all by default, and keep them."""
    if sys.argv[1:2] == ["--measure"]:
        case, work, result = sys.argv[2:]
        Path(result).write_text(json.dumps(measure(case, Path(work))), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        for case in sys.argv[1:] or CASES:
            if case != "libraries":
                model_of(case.split("/")[0], Path(folder))  # here, so that the case's own process only loads it
            result = run(case, Path(folder))
            print(case, result["measured_mb"], "MB", flush=True)
            keep(case, result)


def keep(case: str, result: dict) -> None:
    """Write one case into the record, in the order of CASES."""
    kept = json.loads(RECORD.read_text(encoding="utf-8"))["cases"] if RECORD.is_file() else {}
    kept[case] = result
    record = {
        "cases": {name: kept[name] for name in CASES if name in kept},
        "date": date.today().isoformat(),
        "versions": versions(),
        "command": "python bench/record_memory.py",
    }
    RECORD.parent.mkdir(exist_ok=True)
    write_at_once(RECORD, json.dumps(record, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Of the libraries that decide it."""
    return library_versions() | {"bitsandbytes": version("bitsandbytes")}


if __name__ == "__main__":
    main()
