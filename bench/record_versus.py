"""Record data/records/versus.json: PPO over KL coefficients and DPO over beta, from one SFT model, on the tiny Llama.

    python bench/record_versus.py [--seeds 0 1 2] [--jobs N]

Lesson 09 reads it. SFT and the reward model are those of seed 0, for every run (from runs/stages, or trained); a seed
changes PPO or DPO alone. Each run has a process of its own with one thread, and is measured on the same held-out
prompts by plain samples at temperature 1: gold, the reward model's score (proxy) and KL from SFT on the same replies.
SFT's own replies, many a prompt, are kept with both rewards, so that the frontier and best-of-n can be computed from
the record. What is recorded already is not run again; the file is written after every run. On one core: about 15
minutes for SFT's replies, 3 for a run of PPO, 2 for one of DPO.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib import import_module
from pathlib import Path
from threading import Lock

import numpy as np
from tqdm import tqdm

from rlhf_lab.files import write_at_once
from rlhf_lab.lab import HELPDESK, Lab
from rlhf_lab.stages.common import LIBRARIES, library_versions
from rlhf_lab.versus import RECORD

KL_COEFS, BETAS = (0.2, 0.4, 0.1, 0.8), (0.15, 0.4, 0.05, 1.0)  # the profile's own first
LOSSES = {"dpo+sft": {}, "dpo": {"loss_type": ["sigmoid"], "loss_weights": [1.0]}}  # the profile's, and the paper's
COSTS = ("sft", "reward")  # trained once more, for what they cost under the same conditions
SIZES = {"prompts": 48, "samples": 512, "replies": 16, "settings": {}}


def wanted(seeds: list[int]) -> list[dict]:
    """Everything to be recorded, in the order in which a figure grows from it."""
    runs = [
        {"what": what, "knob": knob, "seed": seed}
        for seed in seeds
        for coefficient, beta in zip(KL_COEFS, BETAS, strict=True)
        for what, knob in (("ppo", coefficient), *((loss, beta) for loss in LOSSES))
    ]
    defaults = len(LOSSES) + 1
    costs = [{"what": "cost", "stage": stage} for stage in COSTS]
    return [{"what": "reference"}, *runs[:defaults], *costs, *runs[defaults:]]


# ---- in the process of a run ----


def measured(policy, lab: Lab, sizes: dict, each: int, seed: int) -> tuple[dict[str, np.ndarray], list, list]:
    """Both rewards of `each` replies to each prompt, (prompts, each); and (prompt, token ids) of all of them."""
    from rlhf_lab.evaluate import generate_ids, score
    from rlhf_lab.helpdesk.gold import gold_reward

    size = lab.profile.generation_batch
    prompts = [prompt for prompt in lab.prompts[: sizes["prompts"]] for _ in range(each)]
    ids = generate_ids(
        policy, lab.tokenizer, prompts, max_new_tokens=lab.profile.response_length, batch_size=size, seed=seed
    )
    texts = [lab.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    rewards = {
        "gold": [gold_reward(prompt[-1]["content"], text) for prompt, text in zip(prompts, texts, strict=True)],
        "proxy": score(lab.judge(), lab.tokenizer, prompts, texts, batch_size=size),
    }
    return {name: np.reshape(values, (-1, each)) for name, values in rewards.items()}, prompts, ids


def reference(lab: Lab, sizes: dict) -> dict:
    """Many replies of the SFT model to each prompt: their rewards, in thousandths."""
    rewards, _, ids = measured(lab.policy("sft"), lab, sizes, sizes["samples"], seed=0)
    thousandths = {name: np.rint(1000 * values).astype(int).tolist() for name, values in rewards.items()}
    return thousandths | {"tokens": sum(map(len, ids))}


def trained(what: str, knob: float, seed: int, lab: Lab, sizes: dict, folder: Path) -> dict:
    """One run: what it cost, its curves, and how the policy does on the held-out prompts."""
    from rlhf_lab.evaluate import sequence_kl
    from rlhf_lab.stages import dpo, ppo

    inputs, pairs = {"model": lab.sft().path}, HELPDESK / "preferences_train.jsonl"
    if what == "ppo":
        inputs["reward"] = lab.reward().path
    module, settings = (ppo, {"kl_coef": knob}) if what == "ppo" else (dpo, {"beta": knob} | LOSSES[what])
    settings |= sizes["settings"].get(module.__name__.rpartition(".")[2], {})
    result, costs = costed(lambda: module.run(lab.profile, pairs, inputs, folder, seed=seed, settings=settings))
    policy = lab.policy(result)
    rewards, prompts, ids = measured(policy, lab, sizes, sizes["replies"], seed=1)
    kl = sequence_kl(policy, lab.tokenizer, prompts, ids, lab.policy("sft"), batch_size=64)
    found = rewards | {"kl": np.reshape(kl, (-1, sizes["replies"]))}
    return costs | {
        "drawn": drawn(what, result.history, lab.profile.dpo | settings),
        "curves": curves(result.history),
        "tokens_a_reply": sum(map(len, ids)) / len(ids),
        # of the mean over all replies, for the prompts as they are: what another draw of replies would change
        "noise": {name: float(np.sqrt((v.var(1, ddof=1) / v.size).mean())) for name, v in found.items()},
        **{name: np.round(values.mean(1), 4).tolist() for name, values in found.items()},
    }


def costed(run) -> tuple:
    """What `run` returns, a stage's result, and its costs."""
    import psutil

    for library in LIBRARIES:  # in memory before, so that they do not count as the run's
        import_module(library)
    before, started = psutil.Process().memory_info().rss / 1e6, time.process_time()
    result = run()
    return result, {
        "seconds": round(result.seconds, 1),
        "core_seconds": round(time.process_time() - started, 1),
        "peak_mb": round(result.peak_memory_mb),
        "libraries_mb": round(before),
    }


def drawn(what: str, history: list[dict], settings: dict) -> dict[str, int]:
    """What was generated and read while training: replies and tokens that PPO sampled, or pairs that DPO read."""
    if what == "ppo":
        episodes = history[-1]["episode"]
        tokens = np.mean([row["completions/mean_length"] for row in history]) * episodes
        return {"replies": int(episodes), "tokens": round(tokens), "pairs": 0}
    batch = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
    return {"replies": 0, "tokens": 0, "pairs": history[-1]["step"] * batch}


def curves(history: list[dict]) -> dict[str, list[float]]:
    """What a dashboard would have shown."""
    names = ("objective/scores", "objective/kl", "loss", "rewards/accuracies", "logps/chosen")
    return {name: [round(row[name], 3) for row in history if name in row] for name in names if name in history[-1]}


def cost(stage: str, lab: Lab, sizes: dict, folder: Path) -> dict:
    """SFT or the reward model once more, for what it costs."""
    from rlhf_lab.stages import reward, sft

    module, file, model = {
        "sft": (sft, "sft.jsonl", lab.base),
        "reward": (reward, "preferences_train.jsonl", lab.sft().path),
    }[stage]
    settings = sizes["settings"].get(stage)
    return costed(lambda: module.run(lab.profile, HELPDESK / file, {"model": model}, folder, settings=settings))[1]


def work(job: dict, sizes: dict) -> dict:
    """One job, in this process."""
    lab = Lab()
    with tempfile.TemporaryDirectory() as folder:
        if job["what"] == "reference":
            return reference(lab, sizes)
        if job["what"] == "cost":
            return cost(job["stage"], lab, sizes, Path(folder) / "stage")
        return job | trained(job["what"], job["knob"], job["seed"], lab, sizes, Path(folder) / "stage")


# ---- around them ----


def missing(record: dict, jobs: list[dict]) -> list[dict]:
    """Those that are not recorded yet."""
    kept = [{name: run[name] for name in ("what", "knob", "seed")} for run in record["runs"]]
    known = [*kept, *({"what": "cost", "stage": stage} for stage in record["costs"])]
    known += [{"what": "reference"}] if record["reference"] else []
    return [job for job in jobs if job not in known]


def add(record: dict, job: dict, found: dict) -> None:
    """Put what a job found where it belongs."""
    if job["what"] == "reference":
        record["reference"] = found
    elif job["what"] == "cost":
        record["costs"][job["stage"]] = found
    else:
        record["runs"] = sorted([*record["runs"], found], key=lambda run: (run["what"], run["knob"], run["seed"]))


def new_record(sizes: dict) -> dict:
    """An empty record, with what it is of."""
    profile = Lab().profile
    return {
        "about": "PPO and DPO from one SFT model on the tiny Llama, by bench/record_versus.py",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, one thread a run",
        "versions": library_versions(),
        "profile": profile.name,
        "defaults": {"ppo": profile.ppo["kl_coef"], **dict.fromkeys(LOSSES, profile.dpo["beta"])},
        "sizes": sizes,
        "costs": {},
        "reference": {},
        "runs": [],
    }


def as_text(record: dict) -> str:
    """JSON, a line for each innermost list: prompts down, replies across."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", "", m.group()), json.dumps(record, indent=1)) + "\n"


def run_alone(job: dict, sizes: dict) -> dict:
    """One job in a process of its own, with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        found, log = Path(folder) / "found.json", Path(folder) / "log"
        with log.open("w") as output:
            done = subprocess.run(
                [sys.executable, __file__, "--work", json.dumps(job), json.dumps(sizes), str(found)],
                stdout=output,
                stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{job} failed:\n{log.read_text()[-2000:]}")
        return json.loads(found.read_text())


def main() -> None:
    """Record what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at the same time, one thread each")
    parser.add_argument("--output", type=Path, default=RECORD)
    parser.add_argument("--sizes", type=json.loads, default={}, help="JSON over the sizes, for a trial")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        job, sizes, found = arguments.work
        Path(found).write_text(json.dumps(work(json.loads(job), json.loads(sizes))))
        return
    sizes = SIZES | arguments.sizes
    output = arguments.output
    record = json.loads(output.read_text()) if output.is_file() else new_record(sizes)
    if record["sizes"] != sizes:
        parser.error(f"{output} was recorded with other sizes; name another --output")
    Lab().reward()  # and SFT before it, so that two runs do not both train them
    jobs = missing(record, wanted(arguments.seeds))
    lock = Lock()

    def record_one(job: dict) -> None:
        found = run_alone(job, sizes)
        with lock:
            add(record, job, found)
            write_at_once(output, as_text(record))

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(tqdm(pool.map(record_one, jobs), total=len(jobs), unit="run"))


if __name__ == "__main__":
    main()
