"""How training went on an enumerable world: distance from pi*, KL and reward over steps, a line for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.figures.base import FAINT, LabFigure, described, legend_above, new_figure, styled
from rlhf_lab.figures.plain import LINES

if TYPE_CHECKING:
    from rlhf_lab.tabular import Run

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
    """Histories of training, one panel for each of `fields` ("tv", "kl", "reward"), one line for each seed.

    Args:
        runs: label -> a run of rlhf_lab.tabular, or several that differ in their seed. At most 4 labels.
        optimum: field -> the value of pi*, drawn as a level.
    """
    if len(runs) > len(LINES):
        raise ValueError(f"at most {len(LINES)} labels can be told apart, got {len(runs)}")
    every = {label: [found] if hasattr(found, "history") else list(found) for label, found in runs.items()}
    figure, grid = new_figure(7.0 if len(fields) == 1 else 3.7 * len(fields), 3.3, 1, len(fields))
    grid, told = np.atleast_1d(grid), []
    for axes, field in zip(grid, fields, strict=True):
        for (label, seeds), (colour, _, dash) in zip(every.items(), LINES, strict=False):
            for run in seeds:
                name = label if run is seeds[0] else None
                axes.plot(run.history.step, run.history[field], color=colour, linestyle=dash, linewidth=1.8, label=name)
        if optimum and field in optimum:
            axes.axhline(optimum[field], color=FAINT, linewidth=1.4, linestyle=(0, (5, 2)), label="π*")
        axes.set_xlabel("training step")
        axes.set_ylabel(FIELDS[field])
        ends = ", ".join(_told(label, [run.history[field] for run in seeds]) for label, seeds in every.items())
        told.append(f"{FIELDS[field]}: {ends}")
    legend_above(figure, grid[0])
    return described(figure, f"Curves over training steps. {'; '.join(told)}.")


def _told(label: str, curves: Sequence[np.ndarray]) -> str:
    first, last = np.mean([curve[0] for curve in curves]), [round(float(curve[-1]), 3) for curve in curves]
    ends = f"{min(last):.2g}" if len(last) == 1 else f"{min(last):.2g} .. {max(last):.2g}"
    return f"{label} from {round(first, 9):.2g} to {ends}"
