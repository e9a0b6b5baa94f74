"""Lesson 03's moving figures: the clip, the drift of the ratio, GAE, and the estimators of the KL."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D

from rlhf_lab.evaluate import Z_95
from rlhf_lab.exact import kl
from rlhf_lab.figures.base import FAINT, INK, legend_above, styled
from rlhf_lab.figures.live import (
    BLUE,
    GREEN,
    MARK,
    VERMILLION,
    LiveFigure,
    bars,
    curve,
    note,
    panels,
    plain_log_axis,
    set_heights,
)

RATIOS = np.linspace(0.005, 2, 400)
SIGNS = ((+1.0, BLUE, "A = +1: was better than expected"), (-1.0, VERMILLION, "A = -1: was worse than expected"))

# The rollout of ratio_drift: four replies to one prompt, as often as the old policy's probability says.
OLD_PROBS = np.array([0.4, 0.3, 0.2, 0.1])
TIMES_SAMPLED = (4, 3, 2, 1)
ADVANTAGES = (0.2, 1.0, -1.0, -0.5)
DRIFT_STEPS = 24
DRIFT_LOOKS = ((BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (INK, ":"))

KL_LOOKS = {"k1": (BLUE, "-", "o", 0.97), "k2": (VERMILLION, "--", "s", 1.0), "k3": (GREEN, "-.", "D", 1.03)}
SHIFTS = np.geomspace(0.1, 2, 80)


@styled
def clipped_surrogate(ratio: float = 1.5, clip_range: float = 0.2) -> LiveFigure:
    """PPO's objective for one token over the ratio, for both signs of the advantage, over its gradient.

    Above, min(ratio A, clip(ratio) A), which is maximised. Below, d loss / d log pi, the loss being minus that: where
    it is negative a step makes the token likelier. Both from losses.ppo_policy_loss. `ratio` is marked.
    """
    figure, grid = panels(7.8, 5.0, 2, 2, sharex=True, sharey="row", height_ratios=(1.15, 1))
    clipped, slopes, marks, edges, notes = [], [], [], [], []
    for column, (sign, colour, title) in enumerate(SIGNS):
        upper, lower = grid[column], grid[2 + column]
        upper.plot(RATIOS, RATIOS * sign, color=FAINT, linestyle="--")
        clipped.append(curve(upper, RATIOS, RATIOS, color=colour, linewidth=2.4))
        lower.axhline(0, color=FAINT, linewidth=1)
        lower.plot(RATIOS, -RATIOS * sign, color=FAINT, linestyle="--")
        slopes.append(curve(lower, RATIOS, RATIOS, color=colour, linewidth=2.4))
        edges.append([
            curve(axes, color=FAINT, linewidth=1, linestyle=":") for axes in (upper, upper, lower, lower)
        ])  # fmt: skip
        marks.append((curve(upper, color=INK, **MARK), curve(lower, color=INK, **MARK)))
        at = {"x": 0.5, "y": 0.9, "ha": "center"} if sign > 0 else {"x": 0.5, "y": 0.08, "ha": "center"}
        notes.append(note(lower, **at))
        upper.set_title(title, fontsize=10)
        lower.set_xlabel("ratio = new / old probability of the token")
    handles = [Line2D([], [], color=INK, linewidth=2.4), Line2D([], [], color=FAINT, linestyle="--"),
               Line2D([], [], color=FAINT, linewidth=1, linestyle=":")]  # fmt: skip
    figure.legend(handles, ["with the clip", "without", "1 - ε and 1 + ε"], loc="outside upper left", ncols=3)
    grid[0].set_xlim(0, 2.06)
    grid[0].set_ylim(-2.1, 2.1)
    grid[2].set_ylim(-2.2, 2.2)
    grid[0].set_ylabel("objective\n(reward units)")
    grid[2].set_ylabel("d loss / d log π\n(reward units a nat)")

    def update(ratio: float, clip_range: float) -> str:
        said = []
        for column, (sign, _, _) in enumerate(SIGNS):
            objective, gradient = _surrogate(np.append(RATIOS, ratio), sign, clip_range)
            clipped[column].set_ydata(objective[:-1])
            slopes[column].set_ydata(_gap_at_jumps(gradient[:-1]))
            for side, edge in zip((-1, 1, -1, 1), edges[column], strict=True):
                edge.set_data([1 + side * clip_range] * 2, [-3, 3])
            marks[column][0].set_data([ratio], [objective[-1]])
            marks[column][1].set_data([ratio], [gradient[-1]])
            stopped = gradient[-1] == 0
            notes[column].set_text("gradient 0: clipped" if stopped else f"gradient {gradient[-1]:+.2f}")
            effect = "clipped, gradient 0" if stopped else f"gradient {gradient[-1]:+.2f}"
            said.append(f"A = {sign:+.0f}: {effect}")
        return f"Ratio {ratio:.2f}, clip range {clip_range:g}. {'; '.join(said)}."

    about = (
        "PPO's clipped objective for one token over the probability ratio, left for an advantage of +1, right for -1; "
        "below, the gradient of the loss with respect to the token's log-probability."
    )
    return figure.start(about, update, ratio=ratio, clip_range=clip_range)


@styled
def ratio_drift(learning_rate: float = 0.25, clip_range: float = 0.2) -> LiveFigure:
    """Ratios of four replies over many steps on one and the same rollout, without the clip and with it.

    A softmax over four replies starts as the old policy and takes DRIFT_STEPS full-batch gradient steps on
    losses.ppo_policy_loss. A clipped reply has no gradient, and still its ratio goes past the clip: the step that takes
    it there is as long as any, and afterwards the others' gradients move it through the softmax. So the clip slows the
    drift and bounds nothing.
    """
    figure, (left, right) = panels(8.2, 3.9, 1, 2, sharey=True)
    steps, lines = np.arange(DRIFT_STEPS + 1), []
    for axes, title in ((left, "without the clip"), (right, "with the clip")):
        axes.axhline(1, color=FAINT, linewidth=1)
        lines.append([
            curve(axes, steps, steps, color=colour, linestyle=style, linewidth=2,
                  label=f"A = {advantage:+.1f}, old p {old:.1f}")
            for (colour, style), advantage, old in zip(DRIFT_LOOKS, ADVANTAGES, OLD_PROBS, strict=True)
        ])  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step on the same rollout")
        axes.set_xlim(0, DRIFT_STEPS)
    edges = [curve(right, color=FAINT, linestyle="--", linewidth=1.2) for _ in range(2)]
    told = [note(axes, 0.03, 0.04, fontsize=9) for axes in (left, right)]
    left.set_yscale("log")
    left.set_ylim(0.01, 6)
    plain_log_axis(left.yaxis, [0.03, 0.1, 0.3, 1, 3])
    left.set_ylabel("ratio = new / old probability")
    legend_above(figure, left)

    def update(learning_rate: float, clip_range: float) -> str:
        said = []
        for axes_lines, text, limit in zip(lines, told, (float("inf"), clip_range), strict=True):
            probs = _many_steps(learning_rate, limit)  # (steps + 1, replies)
            ratios = probs / OLD_PROBS
            for line, path in zip(axes_lines, ratios.T, strict=True):
                line.set_ydata(path)
            ends = f"{ratios[-1].min():.2f} to {ratios[-1].max():.2f}"
            moved = kl(OLD_PROBS, probs[-1])
            text.set_text(f"ends at {ends}, KL(old || new) {moved:.2f}")
            said.append(f"{ends}, KL(old || new) {moved:.2f} nats")
        for side, edge in zip((-1, 1), edges, strict=True):
            edge.set_data([0, DRIFT_STEPS], [1 + side * clip_range] * 2)
        beyond = ratios[-1].max() > 1 + clip_range + 0.005 or ratios[-1].min() < 1 - clip_range - 0.005
        return (
            f"Learning rate {learning_rate:g}, {DRIFT_STEPS} steps. Ratios without the clip: {said[0]}; with it, "
            f"clip range {clip_range:g}: {said[1]}{', past the clip all the same' if beyond else ''}."
        )

    about = "Probability ratios of four replies over optimizer steps on one rollout, without PPO's clip and with it."
    return figure.start(about, update, learning_rate=learning_rate, clip_range=clip_range)


@styled
def gae_bars(
    tokens: Sequence[str],
    rewards: Sequence[float],
    values: Sequence[float],
    *,
    lam: float = 0.95,
    gamma: float = 1.0,
    lowest_gamma: float = 0.8,
) -> LiveFigure:
    """One reply, token by token: rewards and values above, its GAE advantages for `lam` and `gamma` below.

    Lines stand for the two ends: lam = 0, the TD error, and lam = 1, the discounted return minus the value.

    Args:
        tokens, rewards, values: (T,), one a token; the score is part of the last reward.
        lowest_gamma: the axis has room for every gamma from here to 1.
    """
    at = np.arange(len(tokens))
    figure, (upper, lower) = panels(8.6, 5.0, 2, 1, sharex=True, height_ratios=(1, 1.35))
    upper.bar(at, rewards, color=FAINT, width=0.7, label="reward: KL penalty, score on the last")
    upper.plot(at, values, color=GREEN, marker="D", markersize=3.5, label="value V")
    upper.set_ylabel("reward, value\n(reward units)")
    upper.legend(loc="upper left", ncols=2, fontsize=9)
    upper.set_ylim(*_with_room([*rewards, *values], above=0.45))
    advantage_bars = bars(lower, at, np.zeros(len(at)), 0.7, color=BLUE, label="these λ and γ")
    one_step = curve(lower, at, at, color=VERMILLION, linestyle="--", linewidth=1.5, label="λ = 0: TD error")
    whole = curve(lower, at, at, color=INK, linestyle=":", linewidth=1.8, label="λ = 1: return - V")
    lower.axhline(0, color=FAINT, linewidth=1)
    # gamma = 1 and lowest_gamma with lam = 0 and 1 are the corners between which advantages move.
    corners = np.concatenate([_gae(rewards, values, g, lam) for g in (lowest_gamma, 1.0) for lam in (0.0, 1.0)])
    lower.set_ylim(*_with_room(corners, above=0.3))
    lower.set_xlim(-0.8, len(at) - 0.2)
    lower.set_xticks(at, [token.strip() for token in tokens], rotation=90, fontsize=8)
    lower.grid(axis="x", visible=False)
    upper.grid(axis="x", visible=False)
    lower.set_xlabel("token of the reply")
    lower.set_ylabel("advantage\n(reward units)")
    lower.legend(loc="upper left", ncols=3, fontsize=9)

    def update(lam: float, gamma: float) -> str:
        advantages = _gae(rewards, values, gamma, lam)
        set_heights(advantage_bars, advantages)
        one_step.set_ydata(_gae(rewards, values, gamma, 0.0))
        whole.set_ydata(_gae(rewards, values, gamma, 1.0))
        return (
            f"λ = {lam:g}, γ = {gamma:g}: the advantage is {advantages[0]:+.2f} at the first token and "
            f"{advantages[-1]:+.2f} at the last, {np.abs(advantages).mean():.2f} in size on average."
        )

    about = (
        f"A reply of {len(tokens)} tokens: above, the reward and the value of each token; below, its advantage by GAE."
    )
    return figure.start(about, update, lam=lam, gamma=gamma)


@styled
def kl_estimators(shift: float = 0.5, n: int = 1000, seed: int = 0) -> LiveFigure:
    """k1, k2 and k3 of KL(policy || reference), over how far apart the two are: bias left, spread right.

    Policy N(0, 1), reference N(shift, 1): the KL is shift^2 / 2, and the estimators' moments are known in closed form
    (lines). Points are means of `n` samples from the policy, with 95 % intervals. All divided by the KL, as in
    joschu.net/blog/kl-approx.html, whose figures for shifts 0.1 and 1 lie on these lines.
    """
    figure, (left, right) = panels(7.6, 3.9, 1, 2)
    means, intervals, spreads = {}, {}, {}
    for kind, (colour, style, marker, _) in KL_LOOKS.items():
        mean, spread = np.array([_kl_moments(s)[kind] for s in SHIFTS]).T
        for axes, y in ((left, mean), (right, spread)):
            axes.plot(SHIFTS, y, color=colour, linestyle=style, linewidth=1.8, label=kind)
        point = {**MARK, "color": colour, "marker": marker, "markersize": 7}
        intervals[kind] = curve(left, color=colour, linewidth=1.6, marker="_", markersize=7)
        means[kind], spreads[kind] = curve(left, **point), curve(right, **point)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlim(0.09, 2.2)
        plain_log_axis(axes.xaxis, [0.1, 0.2, 0.5, 1, 2])
        axes.set_xlabel("shift of the reference (standard deviations)")
    left.set_ylim(0, 2.5)
    left.set_ylabel("mean / true KL (1 is unbiased)")
    legend_above(figure, left)
    right.set_yscale("log")
    right.set_ylim(0.6, 30)
    plain_log_axis(right.yaxis, [1, 2, 5, 10, 20])
    right.set_ylabel("standard deviation / true KL")

    def update(shift: float, n: int, seed: int) -> str:
        true, said = shift**2 / 2, []
        for kind, values in _kl_samples(shift, n, seed).items():
            x = shift * KL_LOOKS[kind][3]  # side by side
            mean, spread = values.mean() / true, values.std() / true
            half = Z_95 * spread / np.sqrt(n)
            means[kind].set_data([x], [mean])
            intervals[kind].set_data([x, x], [mean - half, mean + half])
            spreads[kind].set_data([x], [spread])
            said.append(f"{kind} {mean:.2f} ± {half:.2f}")
        biased = _kl_moments(shift)["k2"][0]
        return f"True KL {true:.3f} nats. Means of {n} samples over it: {', '.join(said)}; k2 tends to {biased:.2f}."

    about = (
        "Estimators k1, k2 and k3 of the KL divergence over the distance between policy and reference: their mean and "
        "their standard deviation, both divided by the true KL."
    )
    return figure.start(about, update, shift=shift, n=n, seed=seed)


def _surrogate(ratios: np.ndarray, advantage: float, clip_range: float) -> tuple[np.ndarray, np.ndarray]:
    """(objective, d loss / d log pi) of one token at each ratio, by the loss that trains."""
    import torch

    from rlhf_lab import losses

    logps = torch.from_numpy(np.log(ratios)).requires_grad_()
    ones = torch.ones_like(logps)
    arguments = logps, 0 * ones, advantage * ones, ones, clip_range
    (gradient,) = torch.autograd.grad(losses.ppo_policy_loss(*arguments) * len(ratios), logps)  # of the sum
    each = torch.maximum(*losses._ppo_policy_objectives(*arguments))
    return -each.detach().numpy(), gradient.numpy()


def _gap_at_jumps(y: np.ndarray) -> np.ndarray:
    """NaN where y jumps, so that a line does not climb a step that is not there."""
    return np.where(np.abs(np.diff(y, prepend=y[0])) > 0.2, np.nan, y)


@functools.lru_cache(maxsize=64)  # without the clip, only the learning rate matters
def _many_steps(learning_rate: float, clip_range: float) -> np.ndarray:
    """Probabilities before and after each step on the rollout: (DRIFT_STEPS + 1, replies)."""
    import torch

    from rlhf_lab.losses import ppo_policy_loss

    replies = torch.repeat_interleave(torch.arange(len(OLD_PROBS)), torch.tensor(TIMES_SAMPLED))[:, None]
    old_logps = torch.tensor(OLD_PROBS).log()[replies]
    advantages, mask = torch.tensor(ADVANTAGES, dtype=old_logps.dtype)[replies], torch.ones_like(old_logps)
    logits, path = torch.tensor(OLD_PROBS).log(), [OLD_PROBS]
    for _ in range(DRIFT_STEPS):
        logits.requires_grad_()
        logps = logits.log_softmax(0)[replies]
        loss = ppo_policy_loss(logps, old_logps, advantages, mask, clip_range)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = logits.detach() - learning_rate * gradient
        path.append(logits.softmax(0).numpy())
    return np.array(path)


def _gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> np.ndarray:
    import torch

    from rlhf_lab.returns import gae

    rewards, values = (torch.from_numpy(np.asarray(x, dtype=float)[None]) for x in (rewards, values))
    return gae(rewards, values, torch.ones_like(values), gamma, lam)[0][0].numpy()


def _with_room(values: Sequence[float], above: float) -> tuple[float, float]:
    low, high = min(0.0, *values), max(0.0, *values)
    return low - 0.08 * (high - low), high + above * (high - low)


def _kl_moments(shift: float) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each estimator over the KL, in closed form: k1 is N(shift^2 / 2, shift^2)."""
    square = shift**2
    return {
        "k1": (1.0, 2 / shift),
        "k2": (1 + square / 4, np.sqrt(2 + square)),
        "k3": (1.0, 2 * np.sqrt(np.expm1(square) - square) / square),
    }


def _kl_samples(shift: float, n: int, seed: int) -> dict[str, np.ndarray]:
    """Each estimator at `n` samples from the policy."""
    import torch

    from rlhf_lab.returns import KL_KINDS, kl_estimate

    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(n))
    logps, ref_logps = -0.5 * x.square(), -0.5 * (x - shift).square()
    return {kind: kl_estimate(logps, ref_logps, kind).numpy() for kind in KL_KINDS}
