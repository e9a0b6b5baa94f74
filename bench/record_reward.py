"""Record data/records/reward_scaling.json: what lesson 06 says of a reward model's data, start, epochs and label noise.

    python bench/record_reward.py [--output data/records/reward_scaling.json]

Trains the tiny Llama's reward model some thirty times and measures each on the same 500 held-out pairs. About 15
minutes of one core. Each run is written as it ends, and a run that is in the file is not made again, so an
interrupted recording goes on where it stopped.

    data    125 to 4,000 pairs, one epoch, from the SFT model: the scaling curve. Three seeds up to 1,000 pairs, two
            with 2,000; with 4,000 it is the lesson's own model, from the stages' cache, and one seed
    base    the same from the base model
    epochs  500 pairs, three epochs, measured after each, at the profile's settings
    article the same at the article's: 5e-5, batch 4, linear decay, every weight trained; one seed
    noise   500 pairs labelled anew by annotators who slip more often; two seeds
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from random import Random

import numpy as np

from rlhf_lab import evaluate as ev
from rlhf_lab.files import write_at_once
from rlhf_lab.helpdesk import Annotator, gold_reward
from rlhf_lab.helpdesk.datasets import ANNOTATOR
from rlhf_lab.lab import RECORDS, Lab
from rlhf_lab.profiles import TINY
from rlhf_lab.stages.common import Job, library_versions, run_trainer

SEEDS = (0, 1, 2)
SIZES, LARGE, WHOLE = (125, 250, 500, 1000), 2000, 4000
LARGE_SEEDS = (0, 1)
BASE_SIZES = (250, 1000)
EPOCH_PAIRS, EPOCHS = 500, 3
NOISE_PAIRS, FLIP_RATES, NOISE_SEEDS = 500, (0.0, 0.15, 0.3, 0.4), (0, 1)
TEST_PAIRS = 500
ARTICLE = {"learning_rate": 5e-5, "per_device_train_batch_size": 4, "lr_scheduler_type": "linear", "warmup_steps": 0}
MARKS = {0.0: "0", 0.5: "=", 1.0: "1"}  # wrong, tie, right: one character a held-out pair


def plan() -> Iterator[dict]:
    """Every run: its kind, pairs, seed, start, epochs and flip rate."""
    usual = {"start": "sft", "epochs": 1, "flip_rate": None}
    for size in SIZES:
        for seed in SEEDS:
            yield {"kind": "data", "pairs": size, "seed": seed, **usual}
    yield {"kind": "data", "pairs": WHOLE, "seed": 0, **usual}
    for size in BASE_SIZES:
        for seed in SEEDS:
            yield {"kind": "base", "pairs": size, "seed": seed, **usual, "start": "base"}
    for kind, seeds in (("epochs", SEEDS), ("article", SEEDS[:1])):
        for seed in seeds:
            yield {"kind": kind, "pairs": EPOCH_PAIRS, "seed": seed, **usual, "epochs": EPOCHS}
    for flip_rate in FLIP_RATES:
        for seed in NOISE_SEEDS:
            yield {"kind": "noise", "pairs": NOISE_PAIRS, "seed": seed, **usual, "flip_rate": flip_rate}
    for seed in LARGE_SEEDS:
        yield {"kind": "data", "pairs": LARGE, "seed": seed, **usual}


def gold_gaps(rows: Sequence[dict]) -> np.ndarray:
    """Gold of chosen minus gold of rejected, (pairs,)."""
    return np.array(
        [
            gold_reward(row["prompt"][-1]["content"], row["chosen"][0]["content"])
            - gold_reward(row["prompt"][-1]["content"], row["rejected"][0]["content"])
            for row in rows
        ]
    )


def oracle(rows: Sequence[dict]) -> dict:
    """Accuracy of gold itself on these labels, as an interval's dict."""
    gaps = gold_gaps(rows)
    return ev.pair_accuracy(gaps, np.zeros_like(gaps)).as_dict()


def relabelled(rows: Sequence[dict], flip_rate: float, seed: int) -> list[dict]:
    """The same pairs, labelled anew by an annotator who slips in that share of them."""
    annotator, rng = Annotator(ANNOTATOR.temperature, flip_rate=flip_rate), Random(f"{seed} {flip_rate}")
    labelled = []
    for row in rows:
        message, chosen, rejected = row["prompt"][-1]["content"], row["chosen"], row["rejected"]
        if not annotator.prefers_first(message, chosen[0]["content"], rejected[0]["content"], rng):
            chosen, rejected = rejected, chosen
        labelled.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return labelled


def margins(model, tokenizer, rows: Sequence[dict]) -> np.ndarray:
    """Score of chosen minus score of rejected, (pairs,)."""
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (
        ev.score(model, tokenizer, prompts, [row[side][0]["content"] for row in rows], 128, progress=False)
        for side in ("chosen", "rejected")
    )
    return chosen - rejected


def measured(margin: np.ndarray) -> dict:
    """Accuracy, ECE and loss of margins chosen - rejected."""
    return {
        "accuracy": round(float(ev.preference_outcomes(margin, np.zeros_like(margin)).mean()), 4),
        "ece": round(ev.expected_calibration_error(margin), 4),
        "loss": round(float(np.logaddexp(0, -margin).mean()), 4),
    }


def train(lab: Lab, run: dict, test: list[dict]) -> dict:
    """One run: {"held_out", "right", ...}; with several epochs also both sides after each of them."""
    from transformers import TrainerCallback, set_seed
    from trl import RewardConfig, RewardTrainer

    from rlhf_lab.models import load_reward_model, lora_config

    if run["pairs"] == WHOLE:
        return _found(margins(lab.judge(), lab.tokenizer, test))
    rows = Random(run["seed"]).sample(lab.pairs, len(lab.pairs))[: run["pairs"]]  # smaller sets lie in larger ones
    if run["flip_rate"] is not None:
        rows = relabelled(rows, run["flip_rate"], run["seed"])
    whole = run["kind"] == "article"  # every weight, as in the article's listing
    settings = TINY.reward | {"num_train_epochs": run["epochs"]} | (ARTICLE if whole else {})
    steps = len(rows) * run["epochs"] / settings["per_device_train_batch_size"]
    settings["warmup_steps"] = min(settings["warmup_steps"], int(steps / 4))  # 125 pairs are eight steps in all
    start = lab.base if run["start"] == "base" else str(lab.sft().path)
    after = []

    class Measure(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **kwargs):
            if run["epochs"] > 1:
                sides = {"train": rows, "held_out": test}
                after.append({name: measured(margins(model, lab.tokenizer, side)) for name, side in sides.items()})

    with tempfile.TemporaryDirectory() as folder:
        job = Job(TINY, rows, "reward_scaling", {"model": start}, Path(folder), run["seed"], settings)
        config = job.config(RewardConfig, max_length=TINY.max_length)
        tokenizer, dataset = job.prepare(config.max_length, config.per_device_train_batch_size)
        set_seed(run["seed"])
        trainer = RewardTrainer(
            model=load_reward_model(start, TINY),
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=None if whole else lora_config(TINY, "SEQ_CLS"),
        )
        trainer.add_callback(Measure())
        run_trainer(trainer, f"{run['kind']} {run['pairs']} seed {run['seed']}")
    margin = margins(trainer.model, lab.tokenizer, test)
    found = _found(margin)
    if after:
        found["after_epoch"] = after
    if run["flip_rate"] is not None:
        found |= against_noise(margin, test, run["flip_rate"])
    return found


def _found(margin: np.ndarray) -> dict:
    right = ev.preference_outcomes(margin, np.zeros_like(margin)).tolist()
    return {"held_out": measured(margin), "right": "".join(MARKS[outcome] for outcome in right)}


def against_noise(margin: np.ndarray, test: list[dict], flip_rate: float) -> dict:
    """Agreement with gold, and with a fresh label of the annotator, exactly over its noise; `ceiling` is gold's own."""
    gaps = gold_gaps(test)
    chosen = 1 / (1 + np.exp(-gaps / ANNOTATOR.temperature))  # P(the annotator prefers "chosen")
    chosen = chosen * (1 - flip_rate) + (1 - chosen) * flip_rate
    decided = np.abs(gaps) > ev.TIE
    return {
        "gold": round(float(np.mean((margin > 0)[decided] == (gaps > 0)[decided])), 4),
        "label": round(float(np.where(margin > 0, chosen, 1 - chosen).mean()), 4),
        "ceiling": round(float(np.maximum(chosen, 1 - chosen).mean()), 4),
    }


def outcomes(run: dict) -> np.ndarray:
    """1, 0.5 or 0 for each held-out pair, (pairs,)."""
    values = {mark: value for value, mark in MARKS.items()}
    return np.array([values[mark] for mark in run["right"]])


def slope(runs: Sequence[dict], seed: int = 0, n_boot: int = 2000) -> ev.Interval:
    """Accuracy gained for each doubling of the pairs: least squares over all runs.

    The 95 % interval resamples held-out pairs and seeds together (percentile bootstrap): runs of one seed share their
    training pairs, and all runs share the held-out ones.
    """
    doublings = np.log2([run["pairs"] for run in runs])
    seeds = np.array([run["seed"] for run in runs])
    right = np.array([outcomes(run) for run in runs])  # (runs, pairs)
    generator = np.random.default_rng(seed)
    drawn = []
    while len(drawn) < n_boot:
        chosen = [
            i for s in generator.choice(np.unique(seeds), len(np.unique(seeds))) for i in np.flatnonzero(seeds == s)
        ]
        pairs = generator.integers(right.shape[1], size=right.shape[1])
        drawn.append(np.polyfit(doublings[chosen], right[np.ix_(chosen, pairs)].mean(axis=1), 1)[0])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return ev.Interval(float(np.polyfit(doublings, right.mean(axis=1), 1)[0]), float(low), float(high))


def advantage(ours: Sequence[dict], theirs: Sequence[dict], seed: int = 0, n_boot: int = 2000) -> ev.Interval:
    """Mean accuracy of `ours` less that of `theirs`, matched by seed; held-out pairs and seeds are resampled."""
    by_seed = {run["seed"]: outcomes(run) for run in theirs}
    difference = np.array([outcomes(run) - by_seed[run["seed"]] for run in ours])  # (seeds, pairs)
    generator = np.random.default_rng(seed)
    n, m = difference.shape
    drawn = [
        difference[np.ix_(generator.integers(n, size=n), generator.integers(m, size=m))].mean() for _ in range(n_boot)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return ev.Interval(float(difference.mean()), float(low), float(high))


def summary(runs: Sequence[dict]) -> dict:
    """What the lesson states: slopes, and what starting from SFT is worth (below 0: it costs), with 95 % intervals."""
    of = {kind: [run for run in runs if run["kind"] == kind] for kind in ("data", "base")}
    at = {size: [[run for run in of[kind] if run["pairs"] == size] for kind in ("data", "base")] for size in BASE_SIZES}
    return {
        "slope": slope(of["data"]).as_dict(),
        "slope_from_500": slope([run for run in of["data"] if run["pairs"] >= 500]).as_dict(),
        "sft_over_base": {str(size): advantage(ours, theirs).as_dict() for size, (ours, theirs) in at.items()},
    }


def main() -> None:
    """Make every run that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RECORDS / "reward_scaling.json")
    output = parser.parse_args().output
    lab = Lab("tiny")
    test = lab.test_pairs[:TEST_PAIRS]
    record = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"runs": []}
    record |= {
        "about": "reward models of the tiny Llama, by bench/record_reward.py",
        "date": date.today().isoformat(),
        "versions": library_versions(),
        "settings": {"profile": TINY.reward, "article": ARTICLE, "held_out_pairs": TEST_PAIRS},
        "oracle": oracle(test),
        "oracle_on_training_labels": oracle(lab.pairs),
    }
    done = {tuple(run[name] for name in ("kind", "pairs", "seed", "flip_rate")) for run in record["runs"]}
    for run in plan():
        if tuple(run[name] for name in ("kind", "pairs", "seed", "flip_rate")) not in done:
            record["runs"].append(run | train(lab, run, test))
            write(output, record)
    record |= summary(record["runs"])
    write(output, record)
    print({name: record[name] for name in ("slope", "sft_over_base", "oracle")})


def write(output: Path, record: dict) -> None:
    """The record, a line a run."""
    rest = {name: value for name, value in record.items() if name != "runs"}
    runs = ",\n  ".join(json.dumps(run) for run in record["runs"])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_at_once(output, json.dumps(rest, indent=1)[:-2] + f',\n "runs": [\n  {runs}\n ]\n}}\n')


if __name__ == "__main__":
    main()
