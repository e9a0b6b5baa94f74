"""Record data/records/dpo.json: the runs of DPO that lesson 08 shows and that would take too long to train there.

    python bench/record_dpo.py [--fresh]

The tiny Llama, from lesson 05's SFT model, by rlhf_lab.plain_dpo, which tests hold to TRL's curve; plain sigmoid loss
but where said. Ten minutes on one core. Each run is kept in runs/record_dpo.json as soon as it is done, and what
is there is not trained again (--fresh does); the record is written from all of them.

Measured on the first PROMPTS held-out prompts, one reply each sampled at temperature 1 from the whole distribution:
gold, win rate against SFT's replies, KL to SFT; and on TEST_PAIRS held-out pairs the implicit reward's accuracy. Means
are over seeds. An interval resamples prompts (or pairs), each with its numbers of all seeds, so it speaks of new
prompts and not of new seeds: what each seed gave stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

from rlhf_lab import close_pairs, plain_dpo
from rlhf_lab import evaluate as ev
from rlhf_lab.files import write_at_once
from rlhf_lab.helpdesk import gold_reward
from rlhf_lab.lab import RECORDS, Lab
from rlhf_lab.losses import implicit_rewards
from rlhf_lab.sampling import merged
from rlhf_lab.stages.common import RUNS_DIR, library_versions

RECORD, KEPT = RECORDS / "dpo.json", RUNS_DIR / "record_dpo.json"
SEEDS = (0, 1, 2)
PROMPTS, TEST_PAIRS = 64, 150
RATE, BETA, WARMUP = 2e-3, 0.15, 5  # what the others are compared with
SWEEP_STEPS, SWEEP_BATCH = 40, 4
BETAS = (0.05, 0.15, 0.5, 2.0)
RATES = (5e-7, 1e-5, 2e-3, 6e-2)  # the article's, the end of its range, ours, ours times 30
EPOCH_PAIRS, EPOCH_BATCH, EPOCHS, MEASURED_EPOCHS = 96, 4, 6, (1, 2, 4, 6)
CURVE_STEPS, CURVE_BATCH = 32, 4  # of what is broken
DISPLACED_BETA, DISPLACED_STEPS, DISPLACED_BATCH, PROBED = 0.5, 24, 6, 48
TIMED_BATCH = 16
SFT_WEIGHT = 2.0  # of the tiny profile
CURVES = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


@cache
def lab() -> Lab:
    return Lab("tiny")


@cache
def sft():
    return lab().policy("sft").eval()


@cache
def sft_on_test_pairs() -> tuple[np.ndarray, np.ndarray]:
    return _test_pair_logps(sft())


@cache
def sft_gold() -> np.ndarray:
    return _gold(_replies(sft()))


def _test_pair_logps(model) -> tuple[np.ndarray, np.ndarray]:
    rows = lab().test_pairs[:TEST_PAIRS]
    prompts = [row["prompt"] for row in rows]
    return tuple(
        ev.reply_logps(
            model, lab().tokenizer, prompts, [r[side][0]["content"] for r in rows], batch_size=32, progress=False
        )
        for side in ("chosen", "rejected")
    )


def _replies(model) -> list[list[int]]:
    profile = lab().profile
    return ev.generate_ids(
        model, lab().tokenizer, lab().prompts[:PROMPTS], max_new_tokens=profile.response_length, batch_size=PROMPTS,
        progress=False,
    )  # fmt: skip


def _gold(replies: list[list[int]]) -> np.ndarray:
    texts = [lab().tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in replies]
    return np.array([gold_reward(p[-1]["content"], text) for p, text in zip(lab().prompts, texts, strict=False)])


def measure(policy) -> dict[str, list[float]]:
    """One number a prompt (gold, win, kl) or a pair (accuracy)."""
    with torch.no_grad(), merged(policy):
        replies = _replies(policy)
        kl = ev.sequence_kl(
            policy, lab().tokenizer, lab().prompts[:PROMPTS], replies, sft(), batch_size=32, progress=False
        )
        logps = _test_pair_logps(policy)
    gold = _gold(replies)
    rewards = (implicit_rewards(ours, theirs, 1.0) for ours, theirs in zip(logps, sft_on_test_pairs(), strict=True))
    numbers = {
        "gold": gold,
        "win": ev.preference_outcomes(gold, sft_gold()),
        "kl": kl,
        "accuracy": ev.preference_outcomes(*rewards),
        "tokens": np.array([len(ids) for ids in replies]),
    }
    return {name: [round(float(x), 4) for x in values] for name, values in numbers.items()}


def fit(rows: list[dict], batch_size: int, seed: int, *, reference=None, **settings) -> tuple:
    """(policy, generator of its curve): nothing is trained until that is read.

    `reference` makes one from the policy, asked at every step; None is SFT, asked once beforehand.
    """
    policy = plain_dpo.fresh_policy(lab().sft().path, lab().profile, seed)
    batches = plain_dpo.batches_of(rows, lab().tokenizer, batch_size, lab().profile.max_length)
    if reference is None:
        batches = plain_dpo.precompute(plain_dpo.adapters_off(policy), batches)
    else:
        settings["reference"] = reference(policy)
    settings = {"beta": BETA, "learning_rate": RATE, "warmup_steps": WARMUP} | settings
    return policy, plain_dpo.train(policy, batches, **settings)


def pairs(n: int, seed: int) -> list[dict]:
    """So many training pairs, others for another seed."""
    order = np.random.default_rng(seed).permutation(len(lab().pairs))[:n]
    return [lab().pairs[i] for i in order]


# ---- the runs: each gives what is kept of it ----


def swept(seed: int, **settings) -> dict:
    policy, curve = fit(pairs(SWEEP_STEPS * SWEEP_BATCH, seed), SWEEP_BATCH, seed, **settings)
    last = list(curve)[-10:]
    return measure(policy) | {"last": {name: float(np.mean([step[name] for step in last])) for name in CURVES}}


def over_epochs(seed: int) -> dict:
    per_epoch = EPOCH_PAIRS // EPOCH_BATCH
    policy, curve = fit(pairs(EPOCH_PAIRS, seed), EPOCH_BATCH, seed, steps=per_epoch * EPOCHS)
    kept, epoch = {}, []
    for step, gauges in enumerate(curve, start=1):
        epoch.append(gauges)
        if step % per_epoch == 0:
            if step // per_epoch in MEASURED_EPOCHS:
                train = {name: float(np.mean([g[name] for g in epoch])) for name in CURVES}
                kept[str(step // per_epoch)] = measure(policy) | {"last": train}
            epoch = []
    return kept


def displaced(seed: int, data: str, sft_weight: float = 0.0) -> dict:
    """Mean log-ratio to SFT, nats, of chosen and of rejected, on PROBED pairs of that kind that are not trained on."""
    close, far = close_pairs.one_word_apart(close_pairs.clear(pairs(1000, seed)))
    rows, n = far if data == "clear" else close, DISPLACED_STEPS * DISPLACED_BATCH
    loss = partial(plain_dpo.dpo_sft_batch_loss, sft_weight=sft_weight) if sft_weight else plain_dpo.dpo_batch_loss
    policy, curve = fit(rows[:n], DISPLACED_BATCH, seed, batch_loss=loss, beta=DISPLACED_BETA)
    [probe] = plain_dpo.batches_of(rows[n : n + PROBED], lab().tokenizer, PROBED, lab().profile.max_length)
    before = plain_dpo.frozen(sft())(probe)
    kept: dict[str, list[float]] = {"step": [], "chosen": [], "rejected": []}
    for step, _ in enumerate(curve, start=1):
        if step % 4 == 0:
            kept["step"].append(step)
            for side, now, then in zip(("chosen", "rejected"), plain_dpo.frozen(policy)(probe), before, strict=True):
                kept[side].append(round((now - then).mean().item(), 3))
    return kept


def broken(seed: int, fault: str) -> dict:
    rows = pairs(CURVE_STEPS * CURVE_BATCH, seed)
    settings: dict = {}
    if fault == "swapped":
        rows = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    if fault == "rate":
        settings["learning_rate"] = 30 * RATE
    if fault == "wrong":
        settings["reference"] = lambda policy: plain_dpo.frozen(lab().policy("base"))
    if fault == "follows":
        settings["reference"] = plain_dpo.frozen  # of the policy: it reads the very weights that are trained
    policy, curve = fit(rows, CURVE_BATCH, seed, **settings)
    steps = list(curve)
    return measure(policy) | {"curve": {name: [round(step[name], 4) for step in steps] for name in CURVES}}


def references(_seed: int) -> dict:
    """Processor seconds of a step, the median of ten, for each way to have the reference's log-probs."""
    rows, profile = pairs(12 * TIMED_BATCH, 0), lab().profile
    weights = sum(weight.numel() * weight.element_size() for weight in sft().parameters())
    batches = plain_dpo.batches_of(rows, lab().tokenizer, TIMED_BATCH, profile.max_length)
    found = {}
    for name in ("a second model", "adapters off", "stored"):
        policy = plain_dpo.fresh_policy(lab().sft().path, profile)
        reference = plain_dpo.frozen(sft()) if name == "a second model" else plain_dpo.adapters_off(policy)
        given = plain_dpo.precompute(reference, batches) if name == "stored" else batches
        curve, seconds = plain_dpo.train(policy, given, beta=BETA, learning_rate=RATE, reference=reference), []
        began = time.process_time()
        for _ in curve:
            seconds.append(time.process_time() - began)
            began = time.process_time()
        kept = {"a second model": weights, "adapters off": 0, "stored": 2 * 4 * len(rows)}[name]
        found[name] = {"seconds_a_step": median(seconds[2:]), "bytes": kept}
    return found


def jobs() -> dict[str, Callable[[], dict]]:
    found: dict[str, Callable[[], dict]] = {"references/all/0": partial(references, 0)}
    for seed in SEEDS:
        for data, weight in (("close", 0.0), ("clear", 0.0), ("close", SFT_WEIGHT)):
            name = f"displacement/{data}{' + SFT' if weight else ''}/{seed}"
            found[name] = partial(displaced, seed, data, weight)
        if seed == 0:
            for fault in ("healthy", "swapped", "wrong", "follows", "rate"):
                found[f"broken/{fault}/0"] = partial(broken, 0, fault)
        found[f"epochs/all/{seed}"] = partial(over_epochs, seed)
        for beta in BETAS:
            found[f"beta/{beta:g}/{seed}"] = partial(swept, seed, beta=beta)
        for rate in RATES:
            if rate != RATE:
                found[f"rate/{rate:g}/{seed}"] = partial(swept, seed, learning_rate=rate)
    return found


# ---- the record ----


def pooled(runs: list[dict]) -> dict:
    """Mean and interval of each measure over the runs of one setting, and each run's own mean."""
    result: dict = {}
    for name, ours in (("gold", "gold"), ("win_rate", "win"), ("kl", "kl"), ("accuracy", "accuracy")):
        numbers = np.array([run[ours] for run in runs])
        result[name] = _rounded(ev.mean_interval(numbers.mean(axis=0)).as_dict())
        result[f"{name}_by_seed"] = [round(float(x), 3) for x in numbers.mean(axis=1)]
    result["tokens"] = round(float(np.mean([run["tokens"] for run in runs])), 1)
    for name in CURVES if "last" in runs[0] else ():
        result[f"train {name}"] = round(float(np.mean([run["last"][name] for run in runs])), 4)
    return result


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(number, 4) for name, number in numbers.items()}


def record(kept: dict[str, dict]) -> dict:
    """What the lesson reads."""

    def of(group: str, setting: str) -> list[dict]:
        return [kept[f"{group}/{setting}/{seed}"] for seed in SEEDS]

    rates = {f"{rate:g}": of("beta", f"{BETA:g}") if rate == RATE else of("rate", f"{rate:g}") for rate in RATES}
    epochs = of("epochs", "all")
    broken_runs = {fault: kept[f"broken/{fault}/0"] for fault in ("healthy", "swapped", "wrong", "follows", "rate")}
    return {
        "about": "DPO on data/tiny-llama from its SFT model, plain sigmoid loss but where said",
        "command": "python bench/record_dpo.py",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, one of them used",
        "versions": library_versions(),
        "seeds": list(SEEDS),
        "settings": {
            "beta": BETA, "learning_rate": RATE, "warmup_steps": WARMUP, "prompts": PROMPTS, "test_pairs": TEST_PAIRS,
            "sweep": {"steps": SWEEP_STEPS, "pairs_a_batch": SWEEP_BATCH},
            "epochs": {"pairs": EPOCH_PAIRS, "pairs_a_batch": EPOCH_BATCH, "epochs": EPOCHS},
            "broken": {"steps": CURVE_STEPS, "pairs_a_batch": CURVE_BATCH},
            "displacement": {
                "beta": DISPLACED_BETA, "steps": DISPLACED_STEPS, "pairs_a_batch": DISPLACED_BATCH,
                "sft_weight": SFT_WEIGHT, "probed_pairs": PROBED,
            },
        },
        "sft": {"gold": _rounded(ev.mean_interval(sft_gold()).as_dict())},
        "beta": {f"{beta:g}": pooled(of("beta", f"{beta:g}")) for beta in BETAS},
        "learning_rate": {rate: pooled(runs) for rate, runs in rates.items()},
        "epochs": {str(e): pooled([run[str(e)] for run in epochs]) for e in MEASURED_EPOCHS},
        "displacement": {data: of("displacement", data) for data in ("close", "clear", "close + SFT")},
        "broken": {fault: pooled([run]) | {"curve": run["curve"]} for fault, run in broken_runs.items()},
        "references": kept["references/all/0"],
    }  # fmt: skip


def main() -> None:
    """Run what is not kept yet, then write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="train everything again")
    fresh = parser.parse_args().fresh
    torch.set_num_threads(1)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() and not fresh else {}
    for name, run in tqdm(jobs().items(), unit="run"):
        if name not in kept:
            kept[name] = run()
            write_at_once(KEPT, json.dumps(kept))
    write_at_once(RECORD, json.dumps(record(kept), indent=1) + "\n")


if __name__ == "__main__":
    main()
