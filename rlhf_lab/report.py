"""What a run leaves for people and for programs: report.html, its figures, scoreboard.json.

The report is one file that opens anywhere: figures are inlined, nothing is fetched, there is no script, and whatever
a model or a data set said is escaped. Whatever a run did not measure is left out.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

from rlhf_lab.evaluate import Interval
from rlhf_lab.files import write_at_once

MODELS = ("base", "sft", "ppo", "dpo")
SAMPLES_SHOWN = 6

# What the trainers log: (title, key, held-out key, unit), in the order in which to look at them.
CURVES = (
    ("score", "objective/scores", None, "reward-model score"),
    ("KL to the reference", "objective/kl", None, "nats a reply"),
    ("loss", "loss", "eval_loss", "nats"),
    ("token accuracy", "mean_token_accuracy", "eval_mean_token_accuracy", "share of tokens"),
    ("pairs ranked right", "accuracy", "eval_accuracy", "share of pairs"),
    ("pairs ranked right", "rewards/accuracies", "eval_rewards/accuracies", "share of pairs"),
    ("margin", "margin", "eval_margin", "score difference"),
    ("margin", "rewards/margins", "eval_rewards/margins", "implicit reward"),
    ("chosen log-prob", "logps/chosen", "eval_logps/chosen", "nats a reply"),
    ("entropy", "objective/entropy", None, "nats a reply"),
    ("value loss", "loss/value_avg", None, "squared error"),
    ("clipped tokens", "policy/clipfrac_avg", None, "share of tokens"),
)
CURVES_SHOWN = 6

ANY = (-math.inf, math.inf)
SHARE = (0.0, 1.0)
NOT_NEGATIVE = (0.0, math.inf)
KL = (-1.0, math.inf)  # a mean of k1 may dip under 0 by chance; by a whole nat it is a fault
POLICY = {
    "gold": ANY,
    "win_rate": SHARE,
    "win_rate_low": SHARE,
    "win_rate_high": SHARE,
    "kl": KL,
    "mean_length": NOT_NEGATIVE,
}
STAGES = {"sft": NOT_NEGATIVE, "reward": NOT_NEGATIVE, "ppo": NOT_NEGATIVE, "dpo": NOT_NEGATIVE, ...: NOT_NEGATIVE}
# A type, a range of numbers, or the fields below; under the key `...` stands what any further field must be.
SCOREBOARD = {
    "profile": str,
    "seed": int,
    "versions": {...: str},
    "base": {"gold": ANY},
    "sft": {"gold": ANY, "mean_length": NOT_NEGATIVE},
    "reward": {"accuracy": SHARE, "oracle_accuracy": SHARE, "ece": SHARE},
    "ppo": POLICY,
    "dpo": POLICY,
    "seconds": {"total": NOT_NEGATIVE, **STAGES},
    "peak_memory_mb": STAGES,
}
OPTIONAL = {"scoreboard.sft.mean_length"}


def validate_scoreboard(scoreboard: Mapping) -> None:
    """Raise ValueError, naming the field, unless this is a scoreboard: every field, no other, in type and in range.

    Seconds and memory need the four stages and may have more (evaluate, say). Rates and errors are shares of 1.
    """
    _validate("scoreboard", scoreboard, SCOREBOARD)
    for model in ("ppo", "dpo"):
        low, rate, high = (scoreboard[model][name] for name in ("win_rate_low", "win_rate", "win_rate_high"))
        if not low <= rate <= high:
            raise ValueError(f"scoreboard.{model}.win_rate: {rate} is not within its interval [{low}, {high}]")


def win_interval(policy: Mapping) -> Interval:
    """The win rate of one of a scoreboard's policies."""
    return Interval(*(policy[f"win_rate{end}"] for end in ("", "_low", "_high")))


def write_scoreboard(path: Path, scoreboard: Mapping) -> Path:
    """Validate, then write as JSON in one move: a reader sees the old file or the new one, never half of it."""
    validate_scoreboard(scoreboard)
    text = json.dumps(scoreboard, indent=2, allow_nan=False, ensure_ascii=False, default=_plain_number)
    return write_at_once(path, text + "\n")


def write_report(run_dir: Path, scoreboard: Mapping, evaluation: Mapping, histories: Mapping) -> Path:
    """Write run_dir/report.html and run_dir/figures/*.png; returns the path of the report.

    Args:
        scoreboard: as in scoreboard.json, or any part of it.
        evaluation: any of
            "attributes": {model: {attribute: {"value", "low", "high"}}}, "gold" and "kl": {model: {"value", ...}},
            "win_rate": {"ppo": {"value", ...}, "dpo": ...} against SFT, "lengths": {model: [tokens, ...]},
            "calibration": CalibrationCurve.as_dict() (or under "reward"),
            "accuracy": {"before": {"value", ...}, "after": ..., "change": ...}, the change paired over the pairs,
            "samples": [{"prompt": str, "replies": {model: {"text": str, "gold": float}}}].
        histories: {stage: the trainer's log_history}.
    """
    import jinja2

    run_dir = Path(run_dir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        name=run_dir.resolve().name,
        profile=scoreboard.get("profile"),
        seed=scoreboard.get("seed"),
        summary=summary(scoreboard, evaluation),
        figures=_draw(run_dir / "figures", scoreboard, evaluation, histories),
        results=_results_table(scoreboard, evaluation),
        attributes=_attributes_table(evaluation),
        reward=_reward_table(scoreboard),
        accuracy=_accuracy_table(evaluation),
        costs=_costs_table(scoreboard),
        samples=_samples(evaluation),
        versions=scoreboard.get("versions") or {},
    )
    return write_at_once(run_dir / "report.html", html)


def summary(scoreboard: Mapping, evaluation: Mapping) -> list[str]:
    """The run in plain sentences, with its numbers: what improved, whether beyond chance, and how far it moved."""
    sentences = []
    gold = _gold(scoreboard, evaluation)
    lengths = evaluation.get("lengths") or {}
    if gold:
        told = ", ".join(f"{_label(model)} {gold[model].value:.2f}" for model in _ordered(gold))
        count = len(next(iter(lengths.values()))) if lengths else None
        where = f"on {count:,} held-out prompts" if count else "on the held-out prompts"
        sentences.append(f"Mean gold reward {where}: {told}.")
    for model, rate in _win_rates(scoreboard, evaluation).items():
        sentences.append(f"{_label(model)} beats SFT on {rate} of the prompts, ties half: {_verdict(rate)}.")
        sentences += _moved(model, scoreboard, evaluation)
    accuracy = _intervals(evaluation.get("accuracy"))
    if {"before", "after"} <= accuracy.keys():
        before, after = accuracy["before"], accuracy["after"]
        told = f"Share of held-out preferences ranked right: {before} before training, {after} after"
        change = accuracy.get("change")
        sentences.append(f"{told}, a change of {change}." if change else f"{told}.")
    reward = scoreboard.get("reward") or {}
    if {"accuracy", "oracle_accuracy"} <= reward.keys():
        accuracy, oracle = reward["accuracy"], reward["oracle_accuracy"]
        share = f": {100 * accuracy / oracle:.1f} % of what noisy labels allow" if oracle else ""
        sentences.append(
            f"The reward model ranks {accuracy:.3f} of the held-out pairs right where the oracle, which knows the gold "
            f"reward, ranks {oracle:.3f}{share}."
        )
    total = (scoreboard.get("seconds") or {}).get("total")
    if total is not None:
        sentences.append(f"The run took {_duration(total)}.")
    return sentences or ["This run measured nothing yet."]


def _verdict(rate: Interval) -> str:
    if rate.low > 0.5:
        return "the interval lies above 0.5, so it is better than SFT beyond chance"
    if rate.high < 0.5:
        return "the interval lies below 0.5, so it is worse than SFT beyond chance"
    return "the interval contains 0.5, so no difference is shown"


def _moved(model: str, scoreboard: Mapping, evaluation: Mapping) -> list[str]:
    """Where it gained and gave up most against SFT, how far from the reference that took it, and at what length."""
    parts = []
    means = {name: _intervals(by_name) for name, by_name in (evaluation.get("attributes") or {}).items()}
    shared = [name for name in means.get(model, {}) if name in means.get("sft", {})]
    if shared:
        gains = {name: means[model][name].value - means["sft"][name].value for name in shared}
        best, worst = max(gains, key=gains.get), min(gains, key=gains.get)
        parts += [f"gained most in {_words(best)} ({gains[best]:+.2f})"] if gains[best] > 0 else []
        parts += [f"lost most in {_words(worst)} ({gains[worst]:+.2f})"] if gains[worst] < 0 else []
    kl = _kl(scoreboard, evaluation).get(model)
    if kl is not None:
        parts.append(f"moved {kl.value:.2f} nats a reply from the reference (KL)")
    lengths = evaluation.get("lengths") or {}
    if lengths.get(model) and lengths.get("sft"):
        change = round(100 * (_mean(lengths[model]) / _mean(lengths["sft"]) - 1))
        parts.append(f"writes replies {abs(change)} % {'shorter' if change < 0 else 'longer'} than SFT's")
    return [f"It {', '.join(parts[:-1])}{' and ' if parts[:-1] else ''}{parts[-1]}."] if parts else []


# ---- figures ----


def _draw(folder: Path, scoreboard: Mapping, evaluation: Mapping, histories: Mapping) -> dict[str, list[dict]]:
    """Draw what there is data for, save it, and return section -> [{"alt", "source", "width"}] for the template."""
    from rlhf_lab import figures

    drawn = []  # (section, file name, figure)
    attributes = {m: _intervals(by_name) for m, by_name in (evaluation.get("attributes") or {}).items()}
    attributes = {model: attributes[model] for model in _ordered(attributes) if attributes[model]}
    if attributes:
        names = list(dict.fromkeys(name for by_name in attributes.values() for name in by_name))
        drawn.append(("attributes", "gold_by_attribute", figures.gold_by_attribute(names, attributes)))
    lengths = {m: values for m, values in (evaluation.get("lengths") or {}).items() if len(values)}
    rates = _win_rates(scoreboard, evaluation)
    if rates:
        n = len(next(iter(lengths.values()))) if lengths else None
        drawn.append(("win_rate", "win_rates", figures.win_rates(rates, n=n)))
    for stage, history in histories.items():
        if curves := _curves(stage, history):
            drawn.append(("curves", f"curves_{_slug(stage)}", figures.learning_curves(curves)))
    gold, kl = _gold(scoreboard, evaluation), _kl(scoreboard, evaluation)
    if "sft" in gold and kl:
        kl = {"sft": Interval(0.0, 0.0, 0.0), **kl}
    points = {model: (kl[model], gold[model]) for model in _ordered(kl) if model in gold}
    if points:
        drawn.append(("kl", "kl_and_reward", figures.kl_and_reward(points)))
    if lengths:
        drawn.append(("lengths", "lengths", figures.lengths({m: lengths[m] for m in _ordered(lengths)})))
    curve = evaluation.get("calibration") or (evaluation.get("reward") or {}).get("calibration") or {}
    if curve.get("predicted"):
        ece = (scoreboard.get("reward") or {}).get("ece")
        drawn.append(("calibration", "calibration", figures.calibration(curve, ece=ece)))
    seconds, memory = scoreboard.get("seconds") or {}, scoreboard.get("peak_memory_mb") or {}
    if seconds.keys() - {"total"} or memory:
        drawn.append(("costs", "stage_costs", figures.stage_costs(seconds, memory)))

    sections: dict[str, list[dict]] = {}
    for section, name, figure in drawn:
        png = figures.save(figure, folder / f"{name}.png").read_bytes()
        source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
        sections.setdefault(section, []).append(
            {"alt": figures.alt_text(figure), "source": source, "width": figure.css_width}
        )
    return sections


def _curves(stage: str, history: Sequence[Mapping]) -> dict[str, dict]:
    """The panels of one stage, as `figures.learning_curves` takes them."""
    curves = {}
    for title, key, held_out_key, unit in CURVES:
        x_name, x, y = _series(history, key)
        if not y or len(curves) == CURVES_SHOWN:
            continue
        _, *held_out = _series(history, held_out_key, x_name)
        curves[f"{_label(stage).removesuffix(' model')}: {title}"] = {
            "x": x,
            "y": y,
            "xlabel": "optimiser step" if x_name == "step" else x_name,
            "ylabel": unit,
            "model": stage,
            "held_out": held_out if held_out[1] else None,
        }
    return curves


def _series(history: Sequence[Mapping], key: str | None, x_name: str | None = None) -> tuple[str, list, list]:
    """(name of x, x, y) of one logged quantity; x is the first of episode, step and epoch that stands beside it."""
    logs = [log for log in history if _is_number(log.get(key))]
    names = [x_name] if x_name else ["episode", "step", "epoch"]
    for name in names:
        if logs and all(_is_number(log.get(name)) for log in logs):
            return name, [log[name] for log in logs], [log[key] for log in logs]
    return "log entry", list(range(1, len(logs) + 1)) if not x_name else [], [log[key] for log in logs if not x_name]


# ---- tables: {"columns": [...], "rows": [[...], ...]} of text ----


def _results_table(scoreboard: Mapping, evaluation: Mapping) -> dict | None:
    gold, rates = _gold(scoreboard, evaluation), _win_rates(scoreboard, evaluation)
    kl, lengths = _kl(scoreboard, evaluation), evaluation.get("lengths") or {}
    mean_length = {m: _mean(values) for m, values in lengths.items() if len(values)}
    for model in MODELS:
        if "mean_length" in (scoreboard.get(model) or {}):
            mean_length.setdefault(model, scoreboard[model]["mean_length"])
    columns = {
        "Gold reward (points)": {m: _shown(interval) for m, interval in gold.items()},
        "Win rate against SFT": {m: _shown(interval) for m, interval in rates.items()},
        "KL from reference (nats a reply)": {m: _shown(interval) for m, interval in kl.items()},
        "Mean length (tokens)": {m: f"{value:.1f}" for m, value in mean_length.items()},
    }
    columns = {title: cells for title, cells in columns.items() if cells}
    models = _ordered(dict.fromkeys(model for cells in columns.values() for model in cells))
    rows = [[_label(model), *(cells.get(model, "–") for cells in columns.values())] for model in models]
    return {"columns": ["Model", *columns], "rows": rows} if rows else None


def _attributes_table(evaluation: Mapping) -> dict | None:
    means = {m: _intervals(by_name) for m, by_name in (evaluation.get("attributes") or {}).items()}
    models = _ordered({m: by_name for m, by_name in means.items() if by_name})
    names = list(dict.fromkeys(name for model in models for name in means[model]))
    rows = [[_words(name), *(_shown(means[m][name]) if name in means[m] else "–" for m in models)] for name in names]
    return {"columns": ["Attribute", *map(_label, models)], "rows": rows} if rows else None


def _reward_table(scoreboard: Mapping) -> dict | None:
    reward = scoreboard.get("reward") or {}
    titles = {
        "accuracy": "Held-out pairs ranked right by the reward model",
        "oracle_accuracy": "Held-out pairs ranked right by the oracle",
        "ece": "Expected calibration error",
    }
    rows = [[title, f"{reward[name]:.3f}"] for name, title in titles.items() if name in reward]
    return {"columns": ["Measure", "Value"], "rows": rows} if rows else None


def _accuracy_table(evaluation: Mapping) -> dict | None:
    rows = [[name, _shown(interval)] for name, interval in _intervals(evaluation.get("accuracy")).items()]
    return {"columns": ["Training", "Held-out preferences ranked right"], "rows": rows} if rows else None


def _costs_table(scoreboard: Mapping) -> dict | None:
    seconds, memory = scoreboard.get("seconds") or {}, scoreboard.get("peak_memory_mb") or {}
    stages = sorted(dict.fromkeys([*seconds, *memory]), key=lambda stage: stage == "total")
    rows = [
        [
            _label(stage),
            f"{seconds[stage]:,.1f}" if stage in seconds else "–",
            f"{memory[stage]:,.0f}" if stage in memory else "–",
        ]
        for stage in stages
    ]
    return {"columns": ["Stage", "Seconds", "Peak memory (MB)"], "rows": rows} if rows else None


def _samples(evaluation: Mapping) -> list[dict]:
    """Prompts with the replies to them, in the order of the models, the gold of each as text."""
    shown = []
    for sample in (evaluation.get("samples") or [])[:SAMPLES_SHOWN]:
        replies = [
            {
                "key": model if model in MODELS else "other",
                "model": _label(model),
                "text": sample["replies"][model]["text"],
                "gold": f"{gold:.2f}" if _is_number(gold := sample["replies"][model].get("gold")) else None,
            }
            for model in _ordered(sample["replies"])
        ]
        shown.append({"prompt": sample["prompt"], "replies": replies})
    return shown


# ---- small things ----


def _intervals(values: Mapping | None) -> dict[str, Interval]:
    """{name: {"value", "low", "high"}} as Intervals; an entry without its value is dropped."""
    present = {name: entry for name, entry in (values or {}).items() if entry and _is_number(entry.get("value"))}
    return {
        name: Interval(entry["value"], entry.get("low", entry["value"]), entry.get("high", entry["value"]))
        for name, entry in present.items()
    }


def _gold(scoreboard: Mapping, evaluation: Mapping) -> dict[str, Interval]:
    return _measured("gold", scoreboard, evaluation)


def _kl(scoreboard: Mapping, evaluation: Mapping) -> dict[str, Interval]:
    return _measured("kl", scoreboard, evaluation)


def _measured(name: str, scoreboard: Mapping, evaluation: Mapping) -> dict[str, Interval]:
    """From the evaluation with its interval, else from the scoreboard without one."""
    found = _intervals(evaluation.get(name))
    for model in MODELS:
        value = (scoreboard.get(model) or {}).get(name)
        if model not in found and _is_number(value):
            found[model] = Interval(value, value, value)
    return {model: found[model] for model in _ordered(found)}


def _win_rates(scoreboard: Mapping, evaluation: Mapping) -> dict[str, Interval]:
    found = _intervals(evaluation.get("win_rate"))
    for model in ("ppo", "dpo"):
        entry = scoreboard.get(model) or {}
        if model not in found and {"win_rate", "win_rate_low", "win_rate_high"} <= entry.keys():
            found[model] = win_interval(entry)
    return {model: found[model] for model in _ordered(found)}


def _ordered(models: Mapping) -> list[str]:
    return [model for model in MODELS if model in models] + [model for model in models if model not in MODELS]


def _label(name: str) -> str:
    return {"base": "Base", "sft": "SFT", "ppo": "PPO", "dpo": "DPO", "reward": "Reward model"}.get(name, name)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "stage"


def _shown(interval: Interval) -> str:
    return str(interval) if interval.high > interval.low else f"{interval.value:.2f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain_number(value: object) -> int | float:
    """numpy's numbers, for json."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} does not belong in a scoreboard")


def _validate(field: str, value: object, expected: object) -> None:
    if isinstance(expected, dict):
        if not isinstance(value, Mapping):
            raise ValueError(f"{field}: expected an object, got {type(value).__name__}")
        for name in expected.keys() - {...}:
            if name not in value and f"{field}.{name}" not in OPTIONAL:
                raise ValueError(f"{field}.{name}: missing")
        for name in value:
            if name not in expected and ... not in expected:
                raise ValueError(f"{field}.{name}: not a field of a scoreboard")
            _validate(f"{field}.{name}", value[name], expected.get(name, expected.get(...)))
    elif expected is str:
        if not isinstance(value, str) or not value:
            raise ValueError(f"{field}: expected a text, got {value!r}")
    elif expected is int:
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{field}: expected a whole number from 0, got {value!r}")
    else:
        low, high = expected
        if not _is_number(value) or not math.isfinite(value) or not low <= value <= high:
            span = "a finite number" if expected == ANY else f"a number from {low:g} to {high:g}"
            raise ValueError(f"{field}: expected {span}, got {value!r}")
