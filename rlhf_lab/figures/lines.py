"""Curves of small experiments: training runs on enumerable worlds, and measurements over a setting with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from rlhf_lab.figures.base import FAINT, INK, LabFigure, described, legend_above, new_figure, styled
from rlhf_lab.figures.live import BLUE, GREEN, VERMILLION

if TYPE_CHECKING:
    from rlhf_lab.tabular import Run

LOOKS_IN_ORDER = ((BLUE, "-", "o"), (VERMILLION, "--", "^"), (GREEN, "-.", "D"), (INK, ":", "s"))
FIELDS = {
    "tv": "total variation from π*",
    "kl": "KL to the reference (nats)",
    "reward": "expected reward (reward units)",
}


@styled
def training_curves(
    runs: Mapping[str, Run | Sequence[Run]],
    fields: Sequence[str] = ("tv",),
    *,
    optimum: Mapping[str, float] | None = None,
) -> LabFigure:
    """Histories of training, one panel for each of `fields` ("tv", "kl", "reward"); a line for each seed.

    Args:
        runs: label -> a run of rlhf_lab.tabular, or several that differ in their seed. At most 4 labels.
        optimum: field -> the value of pi*, drawn as a level.
    """
    every = {label: [found] if hasattr(found, "history") else list(found) for label, found in runs.items()}
    figure, grid = _grid(len(fields))
    for axes, field in zip(grid, fields, strict=True):
        lines = {
            label: (seeds[0].history.step, np.array([run.history[field] for run in seeds]))
            for label, seeds in every.items()
        }
        _lines(axes, lines, "training step", FIELDS[field])
        if optimum and field in optimum:
            axes.axhline(optimum[field], color=FAINT, linewidth=1.4, linestyle=(0, (5, 2)), label="π*")
    legend_above(figure, grid[0])
    told = [
        f"{FIELDS[field]}: " + ", ".join(_told(label, [run.history[field] for run in s]) for label, s in every.items())
        for field in fields
    ]
    return described(figure, f"Curves over training steps. {'; '.join(told)}.")


@styled
def line_chart(
    lines: Mapping[str, tuple], *, xlabel: str, ylabel: str, level: tuple[str, float] | None = None, **scales: str
) -> LabFigure:
    """label -> (x, y), or (x, y, low, high) with an interval at each point. At most 4 labels.

    Args:
        level: a label and a height, drawn across.
        scales: xscale, yscale as matplotlib takes them.
    """
    figure, (axes,) = _grid(1)
    _lines(axes, lines, xlabel, ylabel)
    axes.set(**scales)
    if level:
        axes.axhline(level[1], color=FAINT, linewidth=1.4, linestyle=(0, (5, 2)), label=level[0])
    legend_above(figure, axes)
    told = ", ".join(_told(label, np.atleast_2d(line[1])) for label, line in lines.items())
    return described(figure, f"{ylabel} over {xlabel}: {told}.")


def _grid(columns: int):
    figure, grid = new_figure(6.2 if columns == 1 else 3.7 * columns, 3.3, 1, columns)
    return figure, np.atleast_1d(grid)


def _lines(axes: Axes, lines: Mapping[str, tuple], xlabel: str, ylabel: str) -> None:
    for (label, (x, y, *interval)), (colour, dashes, marker) in zip(lines.items(), LOOKS_IN_ORDER, strict=False):
        y = np.asarray(y, dtype=float)
        for i, row in enumerate(np.atleast_2d(y)):
            shown = {"color": colour, "linestyle": dashes, "linewidth": 1.8, "label": None if i else label}
            if interval:
                reach = np.abs(np.asarray(interval, dtype=float) - row)
                axes.errorbar(x, row, yerr=reach, marker=marker, markersize=5, capsize=3, **shown)
            else:
                axes.plot(x, row, **shown)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def _told(label: str, rows: Sequence[np.ndarray]) -> str:
    first, last = np.mean([row[0] for row in rows]), [float(f"{row[-1]:.2g}") for row in rows]
    ends = f"{min(last):g}" if min(last) == max(last) else f"{min(last):g} .. {max(last):g}"
    return f"{label} from {round(first, 9):.2g} to {ends}"
