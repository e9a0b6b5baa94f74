"""The whole chain: base -> SFT -> reward model -> PPO and DPO -> evaluation -> report.

`run` trains what is not in the cache yet, measures every model on prompts that none of them saw, and writes the report
and the scoreboard to runs/<name>.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_lab import evaluate as ev
from rlhf_lab.data import load_preferences, load_prompts
from rlhf_lab.files import write_at_once
from rlhf_lab.helpdesk.corpus import LOG_TEMPLATE, only_reply
from rlhf_lab.helpdesk.gold import ATTRIBUTES, gold_breakdown
from rlhf_lab.models import load_policy, load_reward_model, load_tokenizer, resolve
from rlhf_lab.profiles import DATA_DIR, Profile
from rlhf_lab.stages import common, dpo, ppo, reward, sft
from rlhf_lab.stages.common import RUNS_DIR, StageResult, cache_key, library_versions, run_cached

HELPDESK = DATA_DIR / "helpdesk"
SAMPLES = 6
MODELS = ("base", "sft", "ppo", "dpo")
TOP_P = 0.95  # as Holtzman et al. (arXiv 1904.09751) sample, for every model alike
KL_PROMPTS = 256


@dataclass(frozen=True)
class RunResult:
    """Where the report is, and what it says in numbers."""

    report: Path
    scoreboard: dict


def run(
    profile: Profile,
    seed: int = 0,
    output: Path | None = None,
    force: bool = False,
    settings: dict[str, dict] | None = None,
) -> RunResult:
    """Run the chain on the help-desk data. `settings` is {stage: {field: value}}; the report goes to `output`."""
    from rlhf_lab.report import write_report, write_scoreboard

    settings = settings or {}
    started = time.time()
    run_dir = output or RUNS_DIR / f"{profile.name}-seed{seed}"
    base = resolve(profile.model)
    pairs = HELPDESK / "preferences_train.jsonl"

    def train(module, stage: str, data: Path, inputs: dict) -> StageResult:
        result = module.run(profile, data, inputs, seed=seed, settings=settings.get(stage), force=force)
        print(f"{stage}: {'in the cache' if result.cached else f'{result.seconds:.0f} s'}, {result.path}")
        return result

    results = {"sft": train(sft, "sft", HELPDESK / "sft.jsonl", {"model": base})}
    sft_dir = results["sft"].path
    results["reward"] = train(reward, "reward", pairs, {"model": sft_dir})
    results["ppo"] = train(ppo, "ppo", pairs, {"model": sft_dir, "reward": results["reward"].path})
    results["dpo"] = train(dpo, "dpo", pairs, {"model": sft_dir})
    paths = {"base": base, **{stage: result.path for stage, result in results.items()}}
    key = cache_key(
        "evaluate", profile, {"seed": seed}, paths, ("pipeline.py", "evaluate.py", "sampling.py", "helpdesk")
    )
    folder = common.STAGES_DIR / f"{profile.name}-evaluate-{key}"
    results["evaluate"] = run_cached(folder, key, lambda to: _evaluate(profile, paths, seed, to), force)
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    scoreboard = _scoreboard(profile, seed, evaluation, results)
    write_scoreboard(run_dir / "scoreboard.json", scoreboard)
    write_at_once(run_dir / "evaluation.json", json.dumps(evaluation))
    histories = {stage: result.history for stage, result in results.items() if result.history}
    report = write_report(run_dir, scoreboard, evaluation, histories)
    print(f"report: {report} ({time.time() - started:.0f} s this time)")
    return RunResult(report, scoreboard)


def _evaluate(profile: Profile, paths: dict[str, str | Path], seed: int, folder: Path) -> tuple[dict, list]:
    prompts = [row["prompt"] for row in load_prompts(HELPDESK / "prompts.jsonl")]
    tokenizer = load_tokenizer(paths["sft"])
    replies, kl = {}, {}
    reference = load_policy(paths["sft"], profile)
    for model_name in MODELS:
        model = reference if model_name == "sft" else load_policy(paths[model_name], profile)
        replies[model_name] = answer(model, tokenizer, prompts, profile, seed, base=model_name == "base")
        if model_name in ("ppo", "dpo"):
            # The KL is an expectation over the policy itself: over plain samples, not those of the nucleus.
            asked = prompts[:KL_PROMPTS]
            ids = sampled_ids(model, tokenizer, asked, profile, seed, description="KL samples")
            kl[model_name] = ev.sequence_kl(model, tokenizer, asked, ids, reference, batch_size=64, description="KL")
    evaluation = compare_by_gold(prompts, replies, tokenizer) | {
        "kl": {m: ev.mean_interval(v).as_dict() for m, v in kl.items()}
    }
    evaluation["reward"] = evaluate_reward_model(paths["reward"], profile, tokenizer)
    (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return {}, []


def answer(
    model, tokenizer, prompts, profile: Profile, seed: int, base: bool = False, top_p: float = TOP_P
) -> list[str]:
    """One reply a prompt, at temperature 1, from the nucleus of `top_p`: by default as one would deploy the model.

    A base model that never saw the chat template is asked in the form of its own raw text.
    """
    as_log = base and profile.base_reads == "log"
    asked = [LOG_TEMPLATE.format(message=p[-1]["content"]) for p in prompts] if as_log else prompts
    ids = sampled_ids(model, tokenizer, asked, profile, seed, top_p, "answers")
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    return [only_reply(text) for text in texts] if as_log else texts


def sampled_ids(
    model, tokenizer, prompts, profile: Profile, seed: int, top_p: float = 1.0, description: str = ""
) -> list[list[int]]:
    """Token ids of one reply a prompt, at temperature 1."""
    return ev.generate_ids(
        model,
        tokenizer,
        prompts,
        max_new_tokens=profile.response_length,
        top_p=top_p,
        batch_size=profile.generation_batch,
        seed=seed,
        description=description,
    )


def compare_by_gold(prompts: list, replies: dict[str, list[str]], tokenizer) -> dict:
    """Gold by attribute, win rates against SFT, lengths and samples of every model's replies."""
    terms = {
        model: [gold_breakdown(p[-1]["content"], text) for p, text in zip(prompts, texts, strict=True)]
        for model, texts in replies.items()
    }
    gold = {model: [sum(term.values()) for term in rows] for model, rows in terms.items()}
    return {
        "attributes": {
            model: {a: ev.mean_interval([term[a] for term in rows]).as_dict() for a in ATTRIBUTES}
            for model, rows in terms.items()
        },
        "gold": {model: ev.mean_interval(values).as_dict() for model, values in gold.items()},
        "win_rate": {
            model: ev.win_rate(gold[model], gold["sft"]).as_dict() for model in gold if model not in ("base", "sft")
        },
        "lengths": {
            model: [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
            for model, texts in replies.items()
        },
        "samples": [
            {
                "prompt": prompts[i][-1]["content"],
                "replies": {model: {"text": texts[i], "gold": gold[model][i]} for model, texts in replies.items()},
            }
            for i in range(SAMPLES)
        ],
    }


def evaluate_reward_model(path: str | Path, profile: Profile, tokenizer) -> dict:
    """Accuracy, calibration and the oracle's accuracy on the held-out preferences.

    The oracle is the gold reward itself: labels are noisy, so no reward model is expected above it.
    """
    rows = load_preferences(HELPDESK / "preferences_test.jsonl")
    prompts = [row["prompt"] for row in rows]
    model = load_reward_model(path, profile)
    sides = {}
    for side in ("chosen", "rejected"):
        texts = [row[side][0]["content"] for row in rows]
        sides[side] = (
            np.asarray(ev.score(model, tokenizer, prompts, texts, batch_size=profile.generation_batch)),
            np.asarray(
                [sum(gold_breakdown(p[-1]["content"], t).values()) for p, t in zip(prompts, texts, strict=True)]
            ),
        )
    margins = sides["chosen"][0] - sides["rejected"][0]
    labels = np.ones(len(margins), dtype=bool)
    curve = ev.calibration_curve(margins, labels)
    return {
        "accuracy": ev.pair_accuracy(sides["chosen"][0], sides["rejected"][0]).as_dict(),
        "oracle_accuracy": ev.pair_accuracy(sides["chosen"][1], sides["rejected"][1]).value,
        "ece": ev.expected_calibration_error(margins, labels),
        "calibration": curve.as_dict(),
    }


def _scoreboard(profile: Profile, seed: int, evaluation: dict, results: dict[str, StageResult]) -> dict:
    def policy(model: str) -> dict[str, float]:
        rate = evaluation["win_rate"][model]
        return {
            "gold": evaluation["gold"][model]["value"],
            "win_rate": rate["value"],
            "win_rate_low": rate["low"],
            "win_rate_high": rate["high"],
            "kl": evaluation["kl"][model]["value"],
            "mean_length": float(np.mean(evaluation["lengths"][model])),
        }

    seconds = {stage: round(result.seconds, 1) for stage, result in results.items()}
    return {
        "profile": profile.name,
        "seed": seed,
        "versions": library_versions(),
        "base": {"gold": evaluation["gold"]["base"]["value"]},
        "sft": {
            "gold": evaluation["gold"]["sft"]["value"],
            "mean_length": float(np.mean(evaluation["lengths"]["sft"])),
        },
        "reward": {
            "accuracy": evaluation["reward"]["accuracy"]["value"],
            "oracle_accuracy": evaluation["reward"]["oracle_accuracy"],
            "ece": evaluation["reward"]["ece"],
        },
        "ppo": policy("ppo"),
        "dpo": policy("dpo"),
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
        "peak_memory_mb": {stage: round(result.peak_memory_mb, 1) for stage, result in results.items()},
    }
