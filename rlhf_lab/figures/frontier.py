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
NAMES_TO = {"ppo": -45, "dpo": -90, "dpo+sft": 0, "best of n": 135}  # degrees from the marker, the first that is tried
FRONTIER = "frontier"  # the id of its lines, the dotted ones beyond it too
FAR = 1.5  # points beyond this many times the frontier's end stand on a scale of their own


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

    Beyond the frontier's last point two dotted lines hold it: level, and on at its last slope (it may leave the panel
    at the top). Filled markers are means over seeds with 95 % intervals over prompts, faint ones single seeds. Where
    some policies are much farther from SFT than the frontier is known, the axis is broken, and they stand right of the
    break on a scale of their own. `bounds` are those on the KL of best of n, drawn as a short line from its point.
    """
    edge = FAR * max(panel.frontier.end for panel in panels)
    kls = np.array([kl for panel in panels for kl in _kls(panel)])
    columns = 2 if (kls > edge).any() else 1
    ratios = {"width_ratios": (3, 1)} if columns == 2 else {}
    figure, grid = new_figure(9.2, 4.3 * len(panels) + 0.5, len(panels), columns, sharey="row", **ratios)
    rows = np.reshape(grid, (len(panels), columns))
    for panel, parts in zip(panels, rows, strict=True):
        for axes in parts:
            _frontier(axes, panel.frontier, 1.06 * kls.max())
            axes.plot(
                0, panel.frontier.start, LOOKS["sft"].marker, color=LOOKS["sft"].colour, markersize=9, label="SFT"
            )
            for method, points in panel.points.items():
                _method(axes, METHODS[method], points)
            for bound, point in zip(bounds, panel.points.get("best of n", ()), strict=False):
                axes.plot([point.kl.value, bound], [point.reward.value] * 2, ":", color=FAINT, linewidth=1.3)
        _limits(parts, panel, kls[kls <= edge].max(), kls[kls > edge])
    handles, names = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=3, handlelength=2.0)
    figure.draw_without_rendering()  # places the axes, so that names can be placed among the markers
    for panel, parts in zip(panels, rows, strict=True):
        for axes in parts:
            _names(axes, panel)
    return described(figure, f"Reward over KL from SFT. {' '.join(_told(panel) for panel in panels)}")


def _kls(panel: Panel) -> list[float]:
    """Every KL that a marker of the panel stands at."""
    points = [point for points in panel.points.values() for point in points]
    return [panel.frontier.end, *(p.kl.value for p in points), *(kl for p in points for kl, _ in p.seeds)]


def _limits(parts: Sequence, panel: Panel, last: float, beyond: np.ndarray) -> None:
    """What a panel's axes show: its markers up to the KL `last`, those `beyond`, and the frontier where it is known."""
    front, points = panel.frontier, [point for points in panel.points.values() for point in points]
    heights = [front.start, front.points.reward_high[-1], *(y for p in points for y in (p.reward.low, p.reward.high))]
    heights += [reward for point in points for _, reward in point.seeds]
    margin = 0.06 * (max(heights) - min(heights))
    near = parts[0]
    near.set(
        xlim=(-0.03 * last, 1.08 * last), ylim=(min(heights) - margin, max(heights) + margin),
        xlabel="KL from SFT (nats a reply)", ylabel=panel.ylabel,
    )  # fmt: skip
    if len(parts) == 1:
        return
    far = parts[1]
    far.set(xlim=(0.8 * beyond.min(), 1.06 * beyond.max()), xlabel="farther (another scale)")
    far.spines.left.set_visible(False)
    far.tick_params(axis="y", left=False, labelleft=False)
    slash = {"marker": [(-0.6, -1), (0.6, 1)], "markersize": 9, "linestyle": "none", "color": INK, "clip_on": False}
    near.plot([1], [0], transform=near.transAxes, **slash)
    far.plot([0], [0], transform=far.transAxes, **slash)


def _frontier(axes, front: Frontier, upto: float) -> None:
    curve = front.points
    kls, rewards = np.append(0.0, curve.kl), np.append(front.start, curve.reward)
    axes.plot(kls, rewards, color=INK, linewidth=2.0, gid=FRONTIER, label="frontier: the most any policy can have")
    axes.fill_between(
        kls, np.append(front.start, curve.reward_low), np.append(front.start, curve.reward_high),
        color=FAINT, alpha=0.22, linewidth=0, label="its 95 % interval",
    )  # fmt: skip
    if upto > front.end:
        ends = [sum(bound) for bound in zip(front.gain(upto), (front.start,) * 2, strict=True)]
        for height in ends:
            axes.plot([front.end, upto], [curve.reward[-1], height], ":", color=INK, linewidth=1.4, gid=FRONTIER)


def _method(axes, style: Look, points: Sequence[Point]) -> None:
    kls, rewards = [point.kl for point in points], [point.reward for point in points]
    x, y = [kl.value for kl in kls], [reward.value for reward in rewards]
    axes.plot(x, y, color=style.colour, linewidth=1.2, alpha=0.6)
    axes.errorbar(
        x, y, xerr=spread(kls), yerr=spread(rewards), fmt=style.marker, color=style.colour, markersize=8,
        label=style.label, **ERROR_BARS | {"ecolor": style.colour, "elinewidth": 1.0, "capsize": 2},
    )  # fmt: skip
    for point in points:
        if len(point.seeds) > 1:
            axes.plot(*zip(*point.seeds, strict=True), style.marker, color=style.colour, markersize=4, alpha=0.45)


def _names(axes, panel: Panel) -> None:
    """The name of each point, in the nearest place where it covers no marker, no bar, no name and not the frontier."""
    scale = axes.figure.dpi / 72  # pixels in a point
    left, right = axes.get_xlim()
    points = [(method, point) for method, points in panel.points.items() for point in points]
    middles = [(point.kl.value, point.reward.value) for _, point in points]
    taken = [(place, place, 6.0) for place in middles]  # two corners in data, and points around them
    for _, (_, kl, reward, _) in points:
        taken.append(((kl.low, reward.value), (kl.high, reward.value), 2.0))
        taken.append(((kl.value, reward.low), (kl.value, reward.high), 2.0))
    for line in axes.lines:
        if line.get_gid() == FRONTIER:
            x, y = line.get_data()
            here = np.linspace(max(x[0], left), max(left, min(x[-1], right)), 120)
            taken += [(place, place, 1.0) for place in zip(here, np.interp(here, x, y), strict=True)]
    boxes = [
        (*(axes.transData.transform((low, high)) + [[-scale * room], [scale * room]]),) for low, high, room in taken
    ]
    for (method, point), place in zip(points, middles, strict=True):
        if not left <= place[0] <= right:
            continue
        centre, half = axes.transData.transform(place), scale * np.array((2.4 * len(point.name) + 1, 5.0))
        for away, turn in (
            (away, turn) for away in (15, 22, 30, 40, 55) for turn in (0, 30, -30, 60, -60, 90, -90, 180)
        ):
            angle = np.radians(NAMES_TO[method] + turn)
            offset = away * np.array([np.cos(angle), np.sin(angle)])
            low, high = centre + scale * offset - half, centre + scale * offset + half
            if not any((low < b).all() and (high > a).all() for a, b in boxes):
                break
        boxes.append((low, high))
        axes.annotate(
            point.name, place, offset, textcoords="offset points", fontsize=8, color=INK, ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


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
