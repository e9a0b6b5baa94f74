"""Lesson 02's moving figures: Bradley-Terry, Elo, and rewards fitted to noisy comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_lab.evaluate import Z_95
from rlhf_lab.figures.base import FAINT, INK, legend_above, styled
from rlhf_lab.figures.live import BLUE, MARK, VERMILLION, LiveFigure, curve, note, note_above, panels, plain_log_axis
from rlhf_lab.preferences import (
    bradley_terry_information,
    bradley_terry_probability,
    elo_probability,
    fit_bradley_terry,
    reward_standard_errors,
    sample_comparisons,
)

GAPS = np.linspace(-6, 6, 241)
RATINGS = np.linspace(1000, 3000, 201)


@styled
def bradley_terry_curve(gap: float = 1.0, temperature: float = 0.5) -> LiveFigure:
    """P(a preferred) over the reward gap r_a - r_b, for an annotator of some temperature: sigmoid(gap / temperature).

    `gap` is marked; the dashed line is temperature 1.
    """
    figure, axes = panels(7.0, 3.8)
    axes.plot(GAPS, bradley_terry_probability(GAPS, 0), color=FAINT, linestyle="--", label="temperature 1")
    line = curve(axes, GAPS, GAPS, color=BLUE, linewidth=2.2, label="this temperature")
    guide = curve(axes, color=VERMILLION, linestyle=":", linewidth=1.6)
    point = curve(axes, color=VERMILLION, **MARK)
    told = note_above(axes)
    legend_above(figure, axes)
    axes.set_xlim(-6.15, 6.15)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("reward gap r(a) - r(b) (units of reward)")
    axes.set_ylabel("P(a is preferred)")

    def update(gap: float, temperature: float) -> str:
        line.set_ydata(bradley_terry_probability(GAPS / temperature, 0))
        probability = bradley_terry_probability(gap / temperature, 0)
        guide.set_data([gap, gap, -6.15], [0, probability, probability])
        point.set_data([gap], [probability])
        told.set_text(f"P = {probability:.3f}")
        return (
            f"Reward gap {gap:+.1f} at temperature {temperature:g}: a is preferred with probability {probability:.3f}."
        )

    about = "The Bradley-Terry curve: the probability that reply a is preferred over the gap between two rewards."
    return figure.start(about, update, gap=gap, temperature=temperature)


@styled
def elo_curves(rating_a: float = 2000, rating_b: float = 1600, shift: float = 0) -> LiveFigure:
    """P(a beats b) over a's rating: Elo's, and what comes of putting ratings in the odds form, a / (a + b).

    Ratings are logarithms of strength, so Elo knows differences only. `shift` is added to both: Elo's answer stays,
    the other moves.
    """
    figure, axes = panels(7.0, 3.8)
    elo = curve(axes, RATINGS, RATINGS, color=BLUE, linewidth=2.2, label="Elo: 1 / (1 + 10^((b - a) / 400))")
    odds = curve(
        axes, RATINGS, RATINGS, color=VERMILLION, linewidth=2.2, linestyle="--", label="ratings as odds: a / (a + b)"
    )
    at_elo = curve(axes, color=BLUE, **MARK)
    at_odds = curve(axes, color=VERMILLION, **(MARK | {"marker": "s"}))
    told = note_above(axes)
    legend_above(figure, axes)
    axes.set_xlim(950, 3050)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("rating of player a (Elo points)")
    axes.set_ylabel("P(a beats b)")

    def update(rating_a: float, rating_b: float, shift: float) -> str:
        a, b = rating_a + shift, rating_b + shift
        elo.set_ydata(elo_probability(RATINGS, b))
        odds.set_ydata(RATINGS / (RATINGS + b))
        truth, wrong = elo_probability(a, b), a / (a + b)
        at_elo.set_data([a], [truth])
        at_odds.set_data([a], [wrong])
        told.set_text(f"{a:.0f} against {b:.0f}: Elo {truth:.3f}, as odds {wrong:.3f}")
        return (
            f"{a:.0f} against {b:.0f} is odds of {10 ** ((a - b) / 400):.3g} to 1: Elo says {truth:.3f}. The article's "
            f"arithmetic, {a:.0f} / {a + b:.0f}, says {wrong:.3f}."
        )

    about = "The probability that player a beats player b over a's rating, by Elo and with ratings put in as odds."
    return figure.start(about, update, rating_a=rating_a, rating_b=rating_b, shift=shift)


@styled
def fitted_rewards(
    n: int = 200, temperature: float = 1.0, seed: int = 0, *, truth: Sequence[float] = (2.0, 1.0, 0.2, -0.8, -2.4)
) -> LiveFigure:
    """Rewards fitted to `n` noisy comparisons, with their 95 % intervals, beside the truth; and how wide these are.

    An annotator of `temperature` T answers by r / T, so r / T is all that labels can tell. Both are centred. The
    intervals are Wald's, from the Fisher information; where the maximum-likelihood estimate does not exist, none is
    drawn.

    Args:
        n: comparisons of pairs drawn at random. temperature: of the annotator. seed: of both draws.
        truth: the reward of each reply.
    """
    truth = np.asarray(truth, dtype=float) - np.mean(truth)
    items, counts = np.arange(len(truth)), np.geomspace(10, 3000, 60)
    each_pair = np.triu(np.full((len(items), len(items)), 2 / (len(items) * (len(items) - 1))), 1)  # sums to 1
    figure, (left, right) = panels(7.6, 3.7, 1, 2, width_ratios=(1.25, 1))
    true = curve(left, items - 0.14, truth, color=INK, marker="_", markersize=18, markeredgewidth=2.4, linestyle="none",
                 label="truth r / T")  # fmt: skip
    intervals = [curve(left, color=BLUE, linewidth=1.8, marker="_", markersize=7) for _ in items]
    fitted = curve(left, color=BLUE, label="fitted, 95 % interval", **MARK)
    missing = note(right, 0.04, 0.05)
    left.set_ylim(-7, 6)
    left.set_xlim(-0.6, len(truth) - 0.4)
    left.set_xticks(items, list("ABCDEFGHIJ"[: len(truth)]))
    left.set_xlabel("reply")
    left.set_ylabel("reward (log-odds, centred)")
    left.legend(loc="upper right")
    expected = curve(right, counts, counts, color=FAINT, linestyle="--", label="expected, falls as 1 / √n")
    measured = curve(right, color=BLUE, label="measured", **MARK)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlim(9, 3600)
    right.set_ylim(0.05, 10)
    plain_log_axis(right.xaxis, [10, 100, 1000])
    plain_log_axis(right.yaxis, [0.1, 1, 10])
    right.set_xlabel("comparisons n")
    right.set_ylabel("half-width of the interval (log-odds)")
    right.legend(loc="upper right")

    def update(n: int, temperature: float, seed: int) -> str:
        scaled = truth / temperature
        true.set_ydata(scaled)
        information = bradley_terry_information(scaled, each_pair)  # what one comparison tells on average
        expected.set_ydata(Z_95 * np.sqrt(np.diag(np.linalg.pinv(information))).mean() / np.sqrt(counts))
        comparisons = sample_comparisons(truth, n, temperature, seed)
        try:
            estimate = fit_bradley_terry(len(truth), comparisons)
        except ValueError:
            for artist in (fitted, measured, *intervals):
                artist.set_data([], [])
            missing.set_text("no finite estimate:\nsome replies did not both\nwin and lose against the others")
            return (
                f"{n} comparisons at temperature {temperature:g}: no finite estimate, because some replies did not "
                "both win and lose against the others."
            )
        missing.set_text("")
        width = Z_95 * reward_standard_errors(estimate, comparisons)
        fitted.set_data(items + 0.14, estimate)
        for interval, item in zip(intervals, items, strict=True):
            interval.set_data([item + 0.14] * 2, [estimate[item] - width[item], estimate[item] + width[item]])
        measured.set_data([n], [width.mean()])
        inside = int((np.abs(estimate - scaled) <= width).sum())
        return (
            f"{n} comparisons at temperature {temperature:g}: intervals of ±{width.mean():.2f} on average, "
            f"{inside} of {len(truth)} hold the truth."
        )

    about = (
        "Left: rewards fitted to noisy comparisons with 95 % intervals, beside the true ones divided by the "
        "annotator's temperature. Right: the intervals' half-width over the number of comparisons."
    )
    return figure.start(about, update, n=n, temperature=temperature, seed=seed)
