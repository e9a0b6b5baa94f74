"""Every figure of the report: what a run measured in, matplotlib Figure out, nothing else touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from rlhf_lab.evaluate import CalibrationCurve, Interval
from rlhf_lab.figures.base import (
    ERROR_BARS,
    FAINT,
    INK,
    LOOKS,
    LabFigure,
    Look,
    described,
    legend_above,
    look,
    new_figure,
    spread,
    styled,
)


@styled
def gold_by_attribute(
    attributes: Sequence[str],
    means: Mapping[str, Mapping[str, Interval]],
    *,
    ylabel: str = "mean gold reward (points)",
) -> LabFigure:
    """Grouped bars: for each attribute, the mean of each model with its 95 % interval.

    `means` is model -> attribute -> Interval; an attribute that a model lacks leaves a gap.
    """
    figure, axes = new_figure(max(6.5, 1.0 + 1.25 * len(attributes)), 3.8)
    width = 0.8 / max(1, len(means))
    for index, (model, by_attribute) in enumerate(means.items()):
        at = [i + (index - (len(means) - 1) / 2) * width for i, name in enumerate(attributes) if name in by_attribute]
        intervals = [by_attribute[name] for name in attributes if name in by_attribute]
        _bars(axes, at, intervals, width * 0.92, look(model))
    axes.set_xticks(range(len(attributes)), [name.replace("_", " ") for name in attributes])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.set_xlabel("attribute of the reply")
    axes.set_ylabel(ylabel)
    legend_above(figure, axes)
    told = [
        f"{name.replace('_', ' ')}: "
        + ", ".join(f"{look(m).label} {means[m][name].value:.2f}" for m in means if name in means[m])
        for name in attributes
    ]
    return described(figure, f"Bars of the {ylabel} by attribute, with 95 % intervals. {'; '.join(told)}.")


@styled
def win_rates(rates: Mapping[str, Interval], *, baseline: str = "SFT", n: int | None = None) -> LabFigure:
    """Each model's share of prompts won against the baseline (ties half), with the line of no difference at 0.5."""
    figure, axes = new_figure(6.5, 1.5 + 0.55 * len(rates))
    for row, (model, rate) in enumerate(rates.items()):
        style = look(model)
        axes.errorbar(
            rate.value, row, xerr=spread([rate]), fmt=style.marker, color=style.colour, markersize=9, **ERROR_BARS
        )
        axes.annotate(str(rate), (rate.value, row), (0, 9), textcoords="offset points", ha="center", va="bottom")
    axes.axvline(0.5, color=FAINT, linestyle="--", linewidth=1.2)
    axes.annotate(
        "no difference", (0.5, 1), (4, -3), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        color=FAINT, va="top", fontsize=9,
    )  # fmt: skip
    axes.set_yticks(range(len(rates)), [look(model).label for model in rates])
    axes.set_ylim(len(rates) - 0.5, -0.75)
    axes.set_xlim(0, 1.03)
    axes.grid(axis="y", visible=False)
    prompts = "held-out prompts" if n is None else f"{n:,} held-out prompts"
    axes.set_xlabel(f"share of {prompts} won against {baseline} (ties half, 95 % interval)")
    axes.set_ylabel("model")
    told = ", ".join(f"{look(model).label} {rate}" for model, rate in rates.items())
    return described(figure, f"Win rate against {baseline} on {prompts}, 0.5 being no difference: {told}.")


@styled
def learning_curves(curves: Mapping[str, Mapping], *, columns: int = 3) -> LabFigure:
    """Small multiples: one panel for each entry of title -> {"x", "y", "xlabel", "ylabel"}.

    An entry may also have "model", whose colour it takes, and "held_out", a pair (x, y) drawn as points over the line.
    Values that are not finite leave a gap. From 40 points on, a running mean stands in front of the raw line.
    """
    columns = 2 if len(curves) == 4 else min(columns, max(1, len(curves)))
    rows = -(-len(curves) // columns)
    figure, grid = new_figure(max(4.2, 3.1 * columns), 2.6 * rows, rows, columns)
    figure.get_layout_engine().set(h_pad=0.1)
    grid = np.atleast_1d(grid)
    told = []
    for axes, (title, curve) in zip(grid, curves.items(), strict=False):
        x, y = np.asarray(curve["x"], dtype=float), np.asarray(curve["y"], dtype=float)
        style = look(curve.get("model", "sft"))
        smooth = _running_mean(y) if len(y) >= 40 else None
        if smooth is not None:
            axes.plot(x, y, color=style.colour, alpha=0.35, linewidth=0.9)
        marker = style.marker if len(y) <= 12 else None
        axes.plot(
            x, y if smooth is None else smooth, color=style.colour, marker=marker, linewidth=1.8, label="training"
        )
        if curve.get("held_out") is not None:
            axes.plot(*curve["held_out"], style.marker, color=INK, markersize=5, linestyle=":", label="held out")
            axes.legend(fontsize=8.5, handlelength=1.4)
        axes.set_title(title)
        axes.set_xlabel(curve["xlabel"])
        axes.set_ylabel(curve["ylabel"])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        finite = y[np.isfinite(y)]
        if len(finite):
            told.append(f"{title} from {finite[0]:.3g} to {finite[-1]:.3g}")
    for axes in grid[len(curves) :]:
        axes.remove()
    return described(figure, f"Learning curves: {'; '.join(told)}.")


@styled
def kl_and_reward(
    points: Mapping[str, tuple[Interval, Interval]],
    *,
    reference: str = "SFT",
    ylabel: str = "mean gold reward (points)",
) -> LabFigure:
    """What each model gained against how far it moved: gold reward over KL, both with 95 % intervals."""
    figure, axes = new_figure(6.5, 3.9)
    for model, (kl, gold) in points.items():
        style = look(model)
        axes.errorbar(
            kl.value, gold.value, xerr=spread([kl]), yerr=spread([gold]),
            fmt=style.marker, color=style.colour, markersize=9, label=style.label, **ERROR_BARS,
        )  # fmt: skip
        axes.annotate(style.label, (kl.value, gold.value), (9, 7), textcoords="offset points", weight="bold")
    axes.margins(x=0.16, y=0.16)
    lowest, highest = min(kl.low for kl, _ in points.values()), axes.get_xlim()[1]
    axes.set_xlim(left=min(0.0, lowest) - 0.04 * highest)
    axes.set_xlabel(f"KL from {reference} (nats a reply)")
    axes.set_ylabel(ylabel)
    told = "; ".join(f"{look(m).label}: KL {kl}, gold {gold}" for m, (kl, gold) in points.items())
    return described(figure, f"Gold reward over the KL divergence from {reference} in nats a reply. {told}.")


@styled
def calibration(curve: CalibrationCurve | Mapping[str, Sequence[float]], *, ece: float | None = None) -> LabFigure:
    """Observed share preferred over the predicted probability, with the diagonal, over the count of each bin."""
    if not isinstance(curve, Mapping):
        curve = curve.as_dict()
    predicted, observed = np.asarray(curve["predicted"], dtype=float), np.asarray(curve["observed"], dtype=float)
    count, centre = np.asarray(curve["count"], dtype=float), np.asarray(curve["centre"], dtype=float)
    figure, (upper, lower) = new_figure(5.0, 4.8, 2, 1, sharex=True, height_ratios=(3.4, 1))
    style = LOOKS["reward"]
    upper.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1.2, label="calibrated")
    upper.plot(
        predicted, observed, marker=style.marker, color=style.colour, linewidth=1.8, markersize=8, label=style.label
    )
    upper.legend(loc="upper left")
    upper.set_ylim(-0.04, 1.04)
    upper.set_ylabel("observed share preferred")
    if ece is not None:
        upper.annotate(f"ECE {ece:.3f}", (0.97, 0.06), xycoords="axes fraction", ha="right", weight="bold")
    width = 0.9 * (np.diff(centre).min() if len(centre) > 1 else 0.1)
    lower.bar(centre, count, width=width, color=style.colour, hatch=style.hatch)
    lower.set_xlim(0, 1)
    lower.set_ylabel("predictions")
    lower.set_xlabel("predicted probability that a reply is preferred")
    told = ", ".join(f"{o:.2f} at {p:.2f}" for p, o in zip(predicted, observed, strict=True))
    error = "" if ece is None else f" Expected calibration error {ece:.3f}."
    return described(figure, f"Calibration: observed share preferred at each predicted probability: {told}.{error}")


@styled
def lengths(values: Mapping[str, Sequence[int]], *, unit: str = "tokens") -> LabFigure:
    """The spread of reply lengths of each model: box from quartile to quartile, whiskers from 5 % to 95 %, mean dot."""
    figure, axes = new_figure(6.5, 1.3 + 0.55 * len(values))
    told = []
    for row, (model, sample) in enumerate(values.items()):
        style = look(model)
        box = axes.boxplot(
            np.asarray(sample, dtype=float), positions=[row], orientation="horizontal", widths=0.55, whis=(5, 95),
            showfliers=False, showmeans=True, patch_artist=True, manage_ticks=False,
            medianprops={"color": INK, "linewidth": 2},
            meanprops={"marker": "o", "markerfacecolor": "white", "markeredgecolor": INK, "markersize": 6},
        )  # fmt: skip
        box["boxes"][0].set(facecolor=style.colour, edgecolor=INK, hatch=style.hatch)
        told.append(f"{look(model).label} {np.mean(sample):.1f}, median {np.median(sample):.0f}")
    axes.set_yticks(range(len(values)), [look(model).label for model in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"length of a reply ({unit}; box: quartiles, whiskers: 5 % to 95 %, dot: mean)")
    axes.set_ylabel("model")
    return described(figure, f"Reply lengths in {unit}, means: {'; '.join(told)}.")


@styled
def stage_costs(seconds: Mapping[str, float], peak_mb: Mapping[str, float]) -> LabFigure:
    """Wall-clock seconds and peak memory (MB) of each stage, side by side. A "total" is left out."""
    stages = [stage for stage in dict.fromkeys([*seconds, *peak_mb]) if stage != "total"]
    figure, panels = new_figure(7.5, 1.2 + 0.38 * len(stages), 1, 2, sharey=True)
    told, names = [], {stage: LOOKS[stage].label if stage in LOOKS else stage for stage in stages}
    for axes, costs, label in zip(panels, (seconds, peak_mb), ("seconds", "peak memory (MB)"), strict=True):
        for row, stage in enumerate(stages):
            if stage in costs:
                style = LOOKS.get(stage, LOOKS["base"])
                axes.barh(row, costs[stage], height=0.66, color=style.colour, hatch=style.hatch)
                axes.annotate(
                    f"{costs[stage]:,.0f}", (costs[stage], row), (4, 0), textcoords="offset points", va="center"
                )
        axes.set_xlabel(label)
        axes.margins(x=0.2)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        told.append(f"{label}: " + ", ".join(f"{names[s]} {costs[s]:,.0f}" for s in stages if s in costs))
    panels[0].set_yticks(range(len(stages)), list(names.values()))
    panels[0].set_ylim(len(stages) - 0.5, -0.5)
    panels[0].set_ylabel("stage")
    return described(figure, f"What each stage cost. {'; '.join(told)}.")


def _bars(axes, at: Sequence[float], intervals: Sequence[Interval], width: float, style: Look) -> None:
    heights = [interval.value for interval in intervals]
    axes.bar(at, heights, width=width, color=style.colour, hatch=style.hatch, label=style.label)
    axes.errorbar(at, heights, yerr=spread(intervals), fmt="none", **ERROR_BARS)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over a twentieth of the curve, narrower at its ends; what is not finite is left out of it."""
    half = max(2, len(values) // 40)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array([np.mean(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows])
