"""The figure of the course: reward against KL, with the most that any policy can have, and who comes how near to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlhf_lab.evaluate import Interval, mean_interval
from rlhf_lab.figures.base import (
    ERROR_BARS,
    FAINT,
    INK,
    LOOKS,
    LabFigure,
    Look,
    described,
    new_figure,
    spread,
    styled,
)

if TYPE_CHECKING:
    from rlhf_lab.shares import BestOfN, Frontier
    from rlhf_lab.versus import Record

METHODS = {
    "ppo": LOOKS["ppo"]._replace(label="PPO, over the KL coefficient"),
    "dpo": LOOKS["dpo"]._replace(label="DPO, over beta"),
    "dpo+sft": Look("DPO with an SFT term, over beta", "#CC79A7", "s", ""),
    "best of n": Look("best of n by the reward model, n", "#E69F00", "v", ""),
}
NAMES_AT = {"ppo": (6, -11), "dpo": (6, -11), "dpo+sft": (-4, 8), "best of n": (-9, 7)}  # points from the marker


class Point(NamedTuple):
    """One setting of a method: its name ("0.2"), KL and reward with intervals, and (KL, reward) of each seed."""

    name: str
    kl: Interval
    reward: Interval
    seeds: Sequence[tuple[float, float]] = ()


class Panel(NamedTuple):
    """One reward: what it is called (with its unit), its frontier, and the points of each method in METHODS."""

    ylabel: str
    frontier: Frontier
    points: Mapping[str, Sequence[Point]]


def panel(record: Record, reward: str, ylabel: str, front: Frontier, best: Sequence[BestOfN] = ()) -> Panel:
    """What is recorded of one reward, "gold" or "proxy", under its frontier; `best` by the reward model."""
    points = {
        what: [
            Point(
                f"{knob:g}",
                mean_interval(record.mean(what, knob, "kl")),
                mean_interval(record.mean(what, knob, reward)),
                [(run.kl.mean(), getattr(run, reward).mean()) for run in runs],
            )
            for knob, runs in record.settings(what)
        ]
        for what in record.methods
    }
    if best:
        points["best of n"] = [Point(str(b.n), b.kl, mean_interval(b.rewards[reward])) for b in best]
    return Panel(ylabel, front, points)


@styled
def reward_over_kl(panels: Sequence[Panel], *, bounds: Sequence[float] = ()) -> LabFigure:
    """Reward over KL from SFT, one panel for each reward, under the frontier and its 95 % interval.

    Beyond the frontier's last point two dotted lines hold it: level, and on at its last slope. Filled markers are means
    over seeds with 95 % intervals over prompts, faint ones single seeds. `bounds` are those on the KL of best of n,
    drawn as a short line from its point.
    """
    width = 7.2 if len(panels) == 1 else 5.4 * len(panels)
    figure, grid = new_figure(width, 4.9, 1, len(panels))
    told = []
    for axes, panel in zip(np.atleast_1d(grid), panels, strict=True):
        farthest = max(point.kl.high for points in panel.points.values() for point in points)
        _frontier(axes, panel.frontier, 1.06 * farthest)
        axes.plot(0, panel.frontier.start, LOOKS["sft"].marker, color=LOOKS["sft"].colour, markersize=9, label="SFT")
        for method, points in panel.points.items():
            _method(axes, METHODS[method], points, NAMES_AT[method])
            if method == "best of n":
                for bound, point in zip(bounds, points, strict=False):
                    axes.plot([point.kl.value, bound], [point.reward.value] * 2, ":", color=FAINT, linewidth=1.3)
        axes.set_xlabel("KL from SFT (nats a reply)")
        axes.set_ylabel(panel.ylabel)
        axes.set_xlim(left=-0.03 * farthest)
        told.append(_told(panel))
    handles, names = np.atleast_1d(grid)[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=2 if len(panels) == 1 else 3, handlelength=2.0)
    return described(figure, f"Reward over KL from SFT. {' '.join(told)}")


def _frontier(axes, front: Frontier, upto: float) -> None:
    curve = front.points
    kls, rewards = np.append(0.0, curve.kl), np.append(front.start, curve.reward)
    axes.plot(kls, rewards, color=INK, linewidth=2.0, label="frontier: the most any policy can have")
    axes.fill_between(
        kls, np.append(front.start, curve.reward_low), np.append(front.start, curve.reward_high),
        color=FAINT, alpha=0.22, linewidth=0, label="its 95 % interval",
    )  # fmt: skip
    if upto > front.end:
        ends = [sum(bound) for bound in zip(front.gain(upto), (front.start,) * 2, strict=True)]
        for height in ends:
            axes.plot([front.end, upto], [curve.reward[-1], height], ":", color=INK, linewidth=1.4)


def _method(axes, style: Look, points: Sequence[Point], names_at: tuple[int, int]) -> None:
    kls, rewards = [point.kl for point in points], [point.reward for point in points]
    x, y = [kl.value for kl in kls], [reward.value for reward in rewards]
    axes.plot(x, y, color=style.colour, linewidth=1.2, alpha=0.6)
    axes.errorbar(
        x, y, xerr=spread(kls), yerr=spread(rewards), fmt=style.marker, color=style.colour, markersize=8,
        label=style.label, **ERROR_BARS | {"ecolor": style.colour, "elinewidth": 1.0, "capsize": 2},
    )  # fmt: skip
    for point in points:
        axes.annotate(
            point.name, (point.kl.value, point.reward.value), names_at, textcoords="offset points",
            fontsize=8, color=INK, ha="right" if names_at[0] < 0 else "left",
        )  # fmt: skip
        if len(point.seeds) > 1:
            axes.plot(*zip(*point.seeds, strict=True), style.marker, color=style.colour, markersize=4, alpha=0.45)


def _told(panel: Panel) -> str:
    front = panel.frontier
    methods = "; ".join(
        f"{METHODS[method].label}: "
        + ", ".join(f"{point.name} at KL {point.kl.value:.2f} has {point.reward.value:.2f}" for point in points)
        for method, points in panel.points.items()
    )
    return (
        f"{panel.ylabel}: SFT {front.start:.2f}, the frontier {front.points.reward[-1]:.2f} at KL {front.end:.2f}. "
        f"{methods}."
    )
