"""Two figures for any numbers with intervals: lines over a number, and dots beside names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_lab.evaluate import Interval
from rlhf_lab.figures.base import ERROR_BARS, FAINT, INK, LabFigure, described, legend_above, new_figure, spread, styled

HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}  # a line may pass behind a word
# Okabe and Ito's, told apart by marker and dash too.
LINES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))


@styled
def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[Interval | float]]],
    *,
    xlabel: str,
    ylabel: str,
    level: tuple[float, str] | None = None,
    logx: bool = False,
) -> LabFigure:
    """Lines by name: (x, y), y as numbers or as intervals, which are drawn.

    Labels carry the units. `level` is a height and its name, drawn as a dashed line: chance, say. At most four lines;
    beyond 40 points a line has no markers.
    """
    figure, axes = new_figure(7.0, 3.7)
    told = []
    for (name, (x, y)), (colour, marker, dash) in zip(curves.items(), LINES, strict=False):
        if len(curves) > len(LINES):
            raise ValueError(f"at most {len(LINES)} lines can be told apart, got {len(curves)}")
        x = np.asarray(x, dtype=float)
        values = np.array([point.value if isinstance(point, Interval) else point for point in y], dtype=float)
        style = {"color": colour, "linestyle": dash, "linewidth": 1.9, "label": name}
        if isinstance(y[0], Interval):
            axes.errorbar(x, values, yerr=spread(y), marker=marker, markersize=7, **style, **ERROR_BARS)
        else:
            axes.plot(x, values, marker=marker if len(x) <= 40 else None, markersize=6, **style)
        told.append(f"{name} from {values[0]:.3g} at {x[0]:g} to {values[-1]:.3g} at {x[-1]:g}")
    if level is not None:
        axes.axhline(level[0], color=FAINT, linestyle="--", linewidth=1.2)
        axes.annotate(
            level[1], (1, level[0]), (-3, 4), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            color=FAINT, ha="right", fontsize=9, bbox=HALO,
        )  # fmt: skip
        told.append(f"{level[1]} is {level[0]:.3g}")
    if logx:
        axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    legend_above(figure, axes)
    return described(figure, f"{ylabel} over {xlabel}: {'; '.join(told)}.")


@styled
def dots(
    groups: Mapping[str, Mapping[str, Interval]],
    *,
    xlabel: str,
    ylabel: str,
    level: tuple[float, str] | None = None,
) -> LabFigure:
    """Dots with their intervals: group -> row -> Interval. Groups differ in colour and marker, rows stand below each
    other. `level` is a value and its name, drawn as a dashed line."""
    if len(groups) > len(LINES):
        raise ValueError(f"at most {len(LINES)} groups can be told apart, got {len(groups)}")
    rows = list(dict.fromkeys(row for by_row in groups.values() for row in by_row))
    figure, axes = new_figure(7.0, 1.5 + (0.3 + 0.16 * len(groups)) * len(rows))
    told = []
    for index, ((group, by_row), (colour, marker, _)) in enumerate(zip(groups.items(), LINES, strict=False)):
        at = [rows.index(row) + 0.2 * (index - (len(groups) - 1) / 2) for row in by_row]
        intervals = list(by_row.values())
        axes.errorbar(
            [interval.value for interval in intervals], at, xerr=spread(intervals), fmt=marker, color=colour,
            markersize=7, label=group, **ERROR_BARS,
        )  # fmt: skip
        told.append(f"{group}: " + ", ".join(f"{row} {interval}" for row, interval in by_row.items()))
    if level is not None:
        axes.axvline(level[0], color=FAINT, linestyle="--", linewidth=1.2)
        axes.annotate(
            level[1], (level[0], 1), (4, -2), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
            color=FAINT, va="top", fontsize=9, bbox=HALO,
        )  # fmt: skip
        told.append(f"{level[1]} is {level[0]:.3g}")
    axes.set_yticks(range(len(rows)), rows, color=INK)
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if len(groups) > 1:
        legend_above(figure, axes)
    return described(figure, f"{xlabel}, by {ylabel}, with 95 % intervals. {'; '.join(told)}.")
