"""What the commands for one stage or one model do: train, measure on held-out rows, compare, talk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rlhf_lab import evaluate as ev
from rlhf_lab.checks import check_profile_machine
from rlhf_lab.data import load_demonstrations, load_preferences, load_prompts, parse_columns, split_rows
from rlhf_lab.errors import UserError
from rlhf_lab.fetch import fetch, fetch_model, profile_to_be_had
from rlhf_lab.files import write_at_once
from rlhf_lab.models import load_policy, load_reward_model, load_tokenizer, resolve
from rlhf_lab.pipeline import HELPDESK, answer, compare_by_gold
from rlhf_lab.profiles import DATA_DIR, Profile
from rlhf_lab.stages.common import RUNS_DIR, StageResult, library_versions

console = Console()
TINY_DATA = {
    "sft": HELPDESK / "sft.jsonl",
    "reward": HELPDESK / "preferences_train.jsonl",
    "ppo": HELPDESK / "preferences_train.jsonl",
    "dpo": HELPDESK / "preferences_train.jsonl",
}
EXPLAIN = DATA_DIR / "explain" / "pairs.jsonl"


def config_class(stage: str):
    """The trainer's config of a stage."""
    if stage == "ppo":
        from rlhf_lab.ppo import PPOConfig

        return PPOConfig
    import trl

    return {"sft": trl.SFTConfig, "reward": trl.RewardConfig, "dpo": trl.DPOConfig}[stage]


def parse_fields(stage: str, fields: dict[str, str]) -> dict:
    """Texts of the command line as the types that the stage's config declares."""
    from transformers import HfArgumentParser

    cls = config_class(stage)
    parser = HfArgumentParser(cls, allow_abbrev=False)

    def refuse(message: str):
        raise UserError(message, where=f"{cls.__name__}, from the command line", fix="See --help and the field's type")

    parser.error = refuse
    arguments = [part for name, value in fields.items() for part in (f"--{name}", value)]
    namespace = parser.parse_args(arguments)
    return {name: getattr(namespace, name) for name in fields}


def model_path(profile: Profile, model: str | None) -> str:
    """A folder: what the user named, else the profile's model, fetched if need be."""
    if model is not None:
        path = resolve(model)
        if not Path(path).is_dir() and (model.startswith((".", "/")) or model.count("/") != 1):
            raise UserError(
                "no such model folder", where=f"--model {model}", fix="Name a folder, or a hub id owner/name"
            )
        return path if Path(path).is_dir() else str(fetch_model(model))
    if profile.name == "smol":
        return str(fetch("smol"))
    path = resolve(profile.model)
    return path if Path(path).is_dir() else str(fetch_model(profile.model))


def run_stage(
    stage: str,
    profile: Profile,
    *,
    data: Path | None,
    model: str | None,
    seed: int,
    output: Path | None,
    force: bool,
    columns: str | None,
    train_rows: int | None,
    test_rows: int,
    reward: Path | None,
    settings: dict,
) -> StageResult:
    """Train one stage; with `test_rows`, measure on held-out pairs before and after, with 95 % intervals."""
    from rlhf_lab.stages import dpo, ppo, sft
    from rlhf_lab.stages import reward as reward_stage

    module = {"sft": sft, "reward": reward_stage, "ppo": ppo, "dpo": dpo}[stage]
    check_profile_machine(profile)
    profile = profile_to_be_had(profile, model)
    data = data or (TINY_DATA[stage] if profile.name == "tiny" else EXPLAIN)
    mapping = parse_columns(columns) if columns else None
    base = model_path(profile, model)
    held_out: list[dict] = []
    source: Path | list[dict] = data
    if test_rows or train_rows or mapping:
        rows = load_preferences(data, mapping) if test_rows else _loader(stage)(data, mapping)
        train, held_out = split_rows(rows, train_rows or len(rows) - test_rows, test_rows, seed)
        source = _as_stage_rows(stage, train)
    inputs: dict[str, str | Path] = {"model": base}
    if stage == "ppo":
        if reward is None:
            raise UserError("PPO needs a reward model", where="--reward", fix="Train one with `rlhf-lab reward` first")
        if not (reward / "adapter_config.json").is_file():
            raise UserError(
                "no reward adapter here", where=f"--reward {reward}", fix="Name what `rlhf-lab reward` wrote"
            )
        inputs["reward"] = reward
    console.print(
        f"{stage} · profile {profile.name} ({profile.runs_on}) · model {Path(base).name} · "
        f"about {profile.expected_memory_mb} MB expected"
    )
    result = module.run(profile, source, inputs, output, seed, settings, force)
    told = "in the cache" if result.cached else f"{result.seconds:.0f} s, peak {result.peak_memory_mb:.0f} MB"
    console.print(f"{stage}: {told}, saved in {result.path}", soft_wrap=True)
    if held_out:
        report = held_out_report(stage, profile, base, result.path, held_out)
        _keep(result.path, "held_out.json", report)
        _print_report(report, len(held_out))
    return result


def run_pairs(
    profile: Profile,
    data: Path | None,
    *,
    model: str | None,
    seed: int,
    output: Path | None,
    force: bool,
    columns: str | None,
    settings: dict[str, dict],
) -> Path:
    """The whole chain on preference pairs whose true reward nobody knows; returns the report.

    A fifth of the rows, 200 at most, is held out. SFT sees the chosen replies; what is measured is the share of
    held-out pairs that each model ranks as the people did, before and after.
    """
    from rlhf_lab.report import write_report

    check_profile_machine(profile)  # before gigabytes are fetched
    profile = profile_to_be_had(profile, model)
    rows = load_preferences(data or EXPLAIN, parse_columns(columns) if columns else None)
    test_rows = max(1, min(200, len(rows) // 5))
    how = {"data": data or EXPLAIN, "seed": seed, "force": force, "columns": columns, "output": None,
           "train_rows": None, "test_rows": test_rows}  # fmt: skip
    run_dir = output or RUNS_DIR / f"{profile.name}-{Path(how['data']).stem}-seed{seed}"
    results: dict[str, StageResult] = {}
    accuracy: dict[str, dict] = {}
    for stage in ("sft", "reward", "ppo", "dpo"):
        base = model if stage == "sft" else str(results["sft"].path)
        reward = results["reward"].path if stage == "ppo" else None
        results[stage] = run_stage(stage, profile, model=base, reward=reward, settings=settings.get(stage, {}), **how)
        report = json.loads((results[stage].path / "held_out.json").read_text(encoding="utf-8"))
        accuracy |= {f"{stage}: {name}": interval for name, interval in report.items()}
    costs = {
        "profile": profile.name,
        "seed": seed,
        "versions": library_versions(),
        "seconds": {stage: result.seconds for stage, result in results.items()},
        "peak_memory_mb": {stage: result.peak_memory_mb for stage, result in results.items()},
    }
    costs["seconds"]["total"] = sum(costs["seconds"].values())
    histories = {stage: result.history for stage, result in results.items()}
    path = write_report(run_dir, costs, {"accuracy": accuracy}, histories)
    console.print(f"report: {path}", soft_wrap=True)
    return path


def _loader(stage: str):
    return {"sft": load_demonstrations, "ppo": load_prompts}.get(stage, load_preferences)


def _as_stage_rows(stage: str, rows: list) -> list:
    """Rows of pairs as the stage reads them; each still knows its file and line."""
    if stage == "sft":
        return [r.keeping(prompt=r["prompt"], completion=r.get("completion") or r["chosen"]) for r in rows]
    return [r.keeping(prompt=r["prompt"]) for r in rows] if stage == "ppo" else rows


def held_out_report(stage: str, profile: Profile, before: str, after: Path, rows: list[dict]) -> dict[str, dict]:
    """Held-out preference accuracy before and after, as {name: {"value", "low", "high"}}.

    A reward model's accuracy is of its scores. A policy's is the share of pairs whose chosen reply it finds likelier
    than the rejected one; DPO's implicit reward (log-probability against the model before) is shown beside it.
    """
    prompts = [row["prompt"] for row in rows]
    texts = {side: [row[side][0]["content"] for row in rows] for side in ("chosen", "rejected")}
    tokenizer = load_tokenizer(after)
    batch = max(profile.generation_batch // 4, 1)
    if stage == "reward":
        scores = {}
        for when, path in (("before", before), ("after", after)):
            model = load_reward_model(path, profile)
            scores[when] = {s: ev.score(model, tokenizer, prompts, texts[s], batch_size=batch) for s in texts}
        return {f"accuracy {when}": _interval(s["chosen"], s["rejected"]) for when, s in scores.items()}
    logps = {}
    for when, path in (("before", before), ("after", after)):
        model = load_policy(path, profile)
        logps[when] = {s: ev.reply_logps(model, tokenizer, prompts, texts[s], batch_size=batch) for s in texts}
    report = {f"likelier reply is the chosen one, {w}": _interval(s["chosen"], s["rejected"]) for w, s in logps.items()}
    if stage == "dpo":
        implicit = {s: logps["after"][s] - logps["before"][s] for s in texts}
        report["implicit reward's accuracy, before"] = {"value": 0.5, "low": 0.5, "high": 0.5}  # 0 for every reply
        report["implicit reward's accuracy, after"] = _interval(implicit["chosen"], implicit["rejected"])
    return report


def _interval(chosen, rejected) -> dict[str, float]:
    return ev.pair_accuracy(np.asarray(chosen), np.asarray(rejected)).as_dict()


def _print_report(report: dict[str, dict], n: int) -> None:
    table = Table(title=f"{n} held-out pairs, 95 % intervals")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, interval in report.items():
        table.add_row(name, f"{ev.Interval(**interval):.3f}")
    console.print(table)


def evaluate_model(
    profile: Profile, *, model: str | None, data: Path | None, seed: int, output: Path | None, columns: str | None
) -> dict:
    """Gold by attribute on the help desk, or, for --data with pairs, the share whose chosen reply is likelier."""
    profile = profile_to_be_had(profile, model)
    path = model_path(profile, model)
    tokenizer = load_tokenizer(path)
    policy = load_policy(path, profile)
    if data is not None:
        rows = load_preferences(data, parse_columns(columns) if columns else None)
        prompts = [row["prompt"] for row in rows]
        chosen, rejected = (
            ev.reply_logps(policy, tokenizer, prompts, [row[side][0]["content"] for row in rows])
            for side in ("chosen", "rejected")
        )
        report = {"likelier reply is the chosen one": _interval(chosen, rejected)}
        _print_report(report, len(rows))
    else:
        prompts = [row["prompt"] for row in load_prompts(HELPDESK / "prompts.jsonl")]
        untouched = model is None
        texts = answer(policy, tokenizer, prompts, profile, seed, base=untouched)
        report = compare_by_gold(prompts, {"sft": texts}, tokenizer)
        report = {"gold": report["gold"]["sft"]} | report["attributes"]["sft"]
        _print_report(report, len(prompts))
    _keep(output, "evaluation.json", report)
    return report


def _keep(output: Path | None, name: str, record: dict) -> None:
    if output is not None:
        write_at_once(output / name, json.dumps(record, indent=1))


def compare_models(
    profile: Profile,
    model: str,
    baseline: str,
    *,
    data: Path | None,
    seed: int,
    output: Path | None,
    reward: Path | None,
) -> ev.Interval:
    """Win rate of `model` against `baseline` on the same prompts, judged by gold or by a reward model."""
    prompts = [row["prompt"] for row in load_prompts(data or HELPDESK / "prompts.jsonl")]
    if data is not None and reward is None:
        raise UserError("gold knows only the help desk", where="--data", fix="Name a judge with --reward")
    scores = {}
    for name in (model, baseline):
        path = model_path(profile, name)
        tokenizer = load_tokenizer(path)
        texts = answer(load_policy(path, profile), tokenizer, prompts, profile, seed)
        if reward is None:
            from rlhf_lab.helpdesk.gold import gold_reward

            scores[name] = [gold_reward(p[-1]["content"], text) for p, text in zip(prompts, texts, strict=True)]
        else:
            judge = load_reward_model(reward, profile)
            scores[name] = ev.score(judge, load_tokenizer(reward), prompts, texts, batch_size=profile.generation_batch)
    rate = ev.win_rate(scores[model], scores[baseline])
    console.print(f"{model} beats {baseline} on {len(prompts)} prompts: {rate}", soft_wrap=True)
    _keep(output, "comparison.json", {"model": model, "baseline": baseline, "win_rate": rate.as_dict()})
    return rate


def chat_with(profile: Profile, *, model: str | None, seed: int) -> None:
    """Answer what is typed, with the conversation so far; an empty line ends."""
    profile = profile_to_be_had(profile, model)
    path = model_path(profile, model)
    tokenizer, policy = load_tokenizer(path), load_policy(path, profile)
    console.print(f"[bold]{path}[/bold]  (an empty line ends)", soft_wrap=True)
    messages: list[dict[str, str]] = []
    while True:
        try:
            text = console.input("[bold]you>[/bold] ").strip()
        except EOFError:
            text = ""
        if not text:
            return
        messages.append({"role": "user", "content": text})
        reply = ev.generate(
            policy,
            tokenizer,
            [messages],
            max_new_tokens=profile.response_length,
            seed=seed + len(messages),
            progress=False,
        )[0]
        console.print(f"[bold]llama>[/bold] {reply}", markup=True, highlight=False)
        messages.append({"role": "assistant", "content": reply})
