"""PPO on a language model, drawn: what the engine knows of one reply and of one batch, and the log of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from rlhf_lab.figures.base import FAINT, INK, LabFigure, described, legend_above, new_figure, styled
from rlhf_lab.figures.plain import LINES

# Orange below zero, white at it, blue above: Okabe and Ito's, so the sign is read by the colour-blind too.
SIGNED = LinearSegmentedColormap.from_list("signed", ["#D55E00", "#ffffff", "#0072B2"])
CELL = 0.36  # inches a token


class Watched(NamedTuple):
    """One panel of the dashboard."""

    title: str
    unit: str
    level: float | None = None  # where it starts or should stay, drawn as a dashed line


# By the names of the engine's log, which are TRL's.
WATCHED = {
    "objective/scores": Watched("Score", "reward units"),
    "objective/kl": Watched("KL to the reference", "nats a reply", 0.0),
    "policy/clipfrac_avg": Watched("Clip fraction", "share of tokens"),
    "val/ratio": Watched("Ratio, mean", "new / old", 1.0),
    "loss/value_avg": Watched("Value loss", "reward units²"),
    "policy/entropy_avg": Watched("Entropy", "nats a token"),
    "completions/mean_length": Watched("Length", "tokens a reply"),
    "val/num_eos_tokens": Watched("Replies that ended", "in a batch"),
}


@styled
def reply_heatmap(tokens: Sequence[str], rows: Mapping[str, Sequence[float]]) -> LabFigure:
    """What is known of each token of one reply: a column a token, a row a quantity, number and colour in each cell.

    Args:
        tokens: the reply's (T,), end of turn included.
        rows: name and unit -> (T,) numbers. Each row has its own scale, white at 0.
    """
    values = np.array([list(row) for row in rows.values()], dtype=float)
    if values.shape != (len(rows), len(tokens)) or not len(tokens):
        raise ValueError(f"every row needs one number a token, {len(tokens)}: got {values.shape}")
    figure, axes = new_figure(max(6.0, 2.0 + CELL * len(tokens)), 1.4 + 0.34 * len(rows))
    axes.imshow(_unit(values), cmap=SIGNED, vmin=-1.6, vmax=1.6, aspect="auto")  # 1.6: dark ink stays readable
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.1f}".replace("-0.0", "0.0")
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=INK)
    axes.set_xticks(range(len(tokens)), [repr(token)[1:-1] for token in tokens], rotation=90, fontsize=8.5)
    axes.xaxis.set_ticks_position("top")
    axes.xaxis.set_label_position("top")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_xlabel("token of the reply")
    axes.set_ylabel("quantity")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    told = []
    for name, row in zip(rows, values, strict=True):
        low, high = int(row.argmin()), int(row.argmax())
        told.append(f"{name} from {row[low]:.2f} at {tokens[low]!r} to {row[high]:.2f} at {tokens[high]!r}")
    return described(figure, f"Heat map over the {len(tokens)} tokens of one reply. {'; '.join(told)}.")


@styled
def batch_heatmap(panels: Mapping[str, np.ndarray], mask: np.ndarray) -> LabFigure:
    """One batch as the engine holds it: a row a reply, a column a position, grey where `mask` (B, T) is false.

    `panels` is name and unit -> (B, T) numbers; each has its own scale, white at 0.
    """
    mask = np.asarray(mask, dtype=bool)
    figure, grid = new_figure(9.0, 1.1 + (0.5 + 0.11 * len(mask)) * len(panels), len(panels), 1, sharex=True)
    told = []
    for axes, (name, values) in zip(np.atleast_1d(grid), panels.items(), strict=True):
        values = np.asarray(values, dtype=float)
        if values.shape != mask.shape:
            raise ValueError(f"{name} has shape {values.shape}, the mask {mask.shape}")
        highest = np.abs(values[mask]).max() or 1.0
        axes.set_facecolor("#d0d0d0")
        shown = np.ma.masked_array(values, ~mask)
        image = axes.imshow(shown, cmap=SIGNED, vmin=-highest, vmax=highest, aspect="auto", interpolation="nearest")
        figure.colorbar(image, ax=axes, pad=0.01).set_label(name)
        axes.set_ylabel("reply")
        axes.grid(visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        told.append(f"{name} from {values[mask].min():.2f} to {values[mask].max():.2f}")
    np.atleast_1d(grid)[-1].set_xlabel("position (grey: not the reply's; every reply ends in the last column)")
    text = f"Heat maps of a batch of {len(mask)} replies over {mask.shape[1]} positions, {mask.sum()} of them tokens"
    return described(figure, f"{text}. {'; '.join(told)}.")


def curves_of(history: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """A trainer's log, one dict a logging step, as a curve for each number of the dashboard, and the episodes."""
    entries = [entry for entry in history if "objective/scores" in entry]
    return {name: [float(entry[name]) for entry in entries] for name in ("episode", *WATCHED)}


@styled
def dashboard(runs: Mapping[str, Mapping[str, Sequence[float]] | Sequence[Mapping[str, Sequence[float]]]]) -> LabFigure:
    """The eight numbers to watch, a panel each: label -> the `curves_of` a run, or of several that differ in seed.

    At most 4 labels. What is not finite is left out of the line.
    """
    if len(runs) > len(LINES):
        raise ValueError(f"at most {len(LINES)} labels can be told apart, got {len(runs)}")
    every = {label: [found] if isinstance(found, Mapping) else list(found) for label, found in runs.items()}
    figure, grid = new_figure(11.0, 4.8, 2, 4)
    told = []
    for axes, (name, watched) in zip(grid, WATCHED.items(), strict=True):
        if watched.level is not None:
            axes.axhline(watched.level, color=FAINT, linewidth=1.1, linestyle=(0, (5, 2)))
        for (label, seeds), (colour, marker, dash) in zip(every.items(), LINES, strict=False):
            for curves in seeds:
                axes.plot(
                    curves["episode"], curves[name], color=colour, linestyle=dash, linewidth=1.6,
                    marker=marker if len(curves["episode"]) <= 4 else None, markersize=5,
                    label=label if curves is seeds[0] else None,
                )  # fmt: skip
        axes.set_title(watched.title)
        axes.set_ylabel(watched.unit)
        axes.set_xlabel("episodes")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ends = ", ".join(f"{label} {_ends([curves[name] for curves in seeds])}" for label, seeds in every.items())
        told.append(f"{watched.title} ({watched.unit}): {ends}")
    legend_above(figure, grid[0])
    return described(figure, f"Eight curves of PPO over episodes. {'; '.join(told)}.")


def _ends(curves: Sequence[Sequence[float]]) -> str:
    if not any(len(curve) for curve in curves):
        return "nothing yet"
    first, last = (sorted(curve[at] for curve in curves if len(curve)) for at in (0, -1))
    return f"{_span(first)} to {_span(last)}"


def _span(values: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" for value in (values[0], values[-1]))
    return low if low == high else f"{low} .. {high}"


def _unit(values: np.ndarray) -> np.ndarray:
    """Each row divided by its largest size."""
    highest = np.abs(values).max(axis=1, keepdims=True)
    return values / np.where(highest > 0, highest, 1.0)
