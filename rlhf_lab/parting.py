"""Where PPO and DPO part: missing coverage, sure preferences, a wrong reference, noisy labels.

Each function trains policies on worlds that can be enumerated (rlhf_lab.tabular), several at once, and says where they
ended against pi*. Larger beta holds the policy closer to the reference.

Sources
    coverage: arXiv 2404.10719, section 4; deterministic preferences: IPO, arXiv 2310.12036; robust DPO: arXiv
    2403.00409.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import expit, stdtrit

from rlhf_lab import exact
from rlhf_lab.tabular import (
    HISTORY_POINTS,
    World,
    dpo_optimum,
    one_thread,
    preferences,
    sample_preferences,
    train_dpo,
    train_ppo,
)


class CoverageSweep(NamedTuple):
    """Where each method ends as fewer replies occur in pairs, on one random world a seed.

    coverages: (coverages,), share of replies that occur in pairs; world: one prompt a seed; covered: bool,
    (coverages, seeds, replies), growing with coverage; optimum: pi*, (seeds, replies); policies: name of the method ->
    (coverages, seeds, replies); ends: a record array with fields method, coverage, and the mean over seeds with its
    95 % interval (_low, _high) of tv (to pi*), kl (to the reference) and outside (probability of the replies not
    covered); its optimum_outside is what pi* gives those, a mean over seeds.
    """

    coverages: np.ndarray
    world: World
    covered: np.ndarray
    optimum: np.ndarray
    policies: dict[str, np.ndarray]
    ends: np.recarray


def coverage_sweep(
    coverages: Sequence[float] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
    *,
    replies: int = 16,
    beta: float = 0.5,
    seeds: int = 12,
) -> CoverageSweep:
    """PPO and DPO as coverage falls: about two seconds for all of it, so a slider draws what is already computed.

    Methods
        dpo: trained on infinitely many comparisons among the covered replies. It gets their ratios right. What lies
            outside only gives way to or takes from the covered as a block, good replies and bad ones alike.
        ppo: trained on the true reward of whatever it samples, covered or not. Coverage means nothing to it.
        ppo_learned_reward: the optimum for a reward model with one number a reply, 0 to begin with, fitted to the same
            comparisons; nothing is learnt about the replies outside. It is one of the policies of least DPO loss
            (dpo_optimum; dpo ends at another because Adam does not keep the sum of the logits). So what PPO has over
            DPO is a reward that holds outside the pairs, and not the sampling by itself.
    """
    coverages = np.asarray(coverages, float)
    if not ((coverages > 0) & (coverages <= 1)).all():
        raise ValueError(f"a coverage is a share of replies in (0, 1], got {coverages.tolist()}")
    world = _worlds(replies, seeds)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(replies), (seeds, 1)), axis=1)
    n_covered = np.maximum(2, np.rint(coverages * replies))
    covered = order < n_covered[:, None, None]  # (coverages, seeds, replies)

    every = World(*(np.tile(x, (len(coverages), 1)) for x in (world.ref_probs, world.rewards)))
    wins = preferences(every, covered=covered.reshape(-1, replies))
    policies = {
        "dpo": train_dpo(every, beta, wins, steps=300).policy.reshape(covered.shape),
        "ppo": np.broadcast_to(
            train_ppo(world, beta, batch_size=128, steps=60, learning_rate=0.1).policy, covered.shape
        ),
        "ppo_learned_reward": dpo_optimum(every, beta, covered.reshape(-1, replies)).reshape(covered.shape),
    }
    ends, outside = [], np.where(covered, 0.0, world.optimum(beta)).sum(-1).mean(-1)
    for method, policy in policies.items():
        for c, coverage in enumerate(coverages):
            figures = (
                exact.total_variation(policy[c], world.optimum(beta)),
                exact.kl(policy[c], world.ref_probs),
                np.where(covered[c], 0.0, policy[c]).sum(-1),
            )
            ends.append((method, coverage, *(x for f in figures for x in _mean_interval(f)), outside[c]))
    return CoverageSweep(
        coverages,
        world,
        covered,
        world.optimum(beta),
        policies,
        _records(ends, ("method", "coverage"), ("tv", "kl", "outside"), ("optimum_outside",)),
    )


@one_thread
def sure_preferences(beta: float = 0.1, *, steps: int = 2000, learning_rate: float = 0.1) -> np.recarray:
    """Two replies that the reference finds alike, and one always wins: gradient descent on the DPO and the IPO loss.

    DPO's margin h = log-ratio of the winner less that of the loser grows without bound, as log(steps) / beta, so the
    loser dies out whatever beta is; IPO's settles at 1 / (2 beta).

    Returns:
        a record array with fields step (denser at the beginning), dpo_margin, ipo_margin, and dpo_loser, ipo_loser,
        the loser's probability.
    """
    import torch

    from rlhf_lab import losses

    marks = {0, *np.unique(np.geomspace(1, steps, HISTORY_POINTS).astype(int)).tolist()}
    zero = torch.zeros(1, dtype=torch.float64)
    margins = {}
    for name, loss in (("dpo", losses.dpo_loss), ("ipo", losses.ipo_loss)):
        logits, margins[name] = torch.zeros(2, dtype=torch.float64, requires_grad=True), []
        for step in range(steps + 1):
            margin = logits[:1] - logits[1:]  # the normaliser and the reference cancel
            if step in marks:
                margins[name].append(margin.item())
            (gradient,) = torch.autograd.grad(loss(margin, zero, zero, zero, beta), logits)
            logits.data -= learning_rate * gradient
    dpo, ipo = (np.array(margins[name]) for name in ("dpo", "ipo"))
    return np.rec.fromarrays(
        [np.array(sorted(marks)), dpo, ipo, expit(-dpo), expit(-ipo)],
        names="step,dpo_margin,ipo_margin,dpo_loser,ipo_loser",
    )


def wrong_reference(beta: float = 0.5, *, replies: int = 16, seeds: int = 8, n_pairs: int | None = None) -> np.recarray:
    """DPO whose pairs come from, or whose loss holds, another reference than the one the policy is to stay near.

    With infinitely many pairs and full support it does not matter who wrote the replies. What stands in the loss
    does: the policy ends at the optimum of the other reference. With few pairs who wrote them matters a little too (tv
    0.041 against 0.056 from 10,000 pairs, 48 seeds, the difference 0.015 +- 0.010), and how few they are a lot.

    Args:
        n_pairs: comparisons for each seed; infinitely many if not given.

    Returns:
        a record array with fields drawn_from and in_loss ("reference" or "other"), and the mean over seeds with its
        95 % interval (_low, _high) of tv (to pi* of the reference) and kl (to the reference).
    """
    world, other = _worlds(replies, seeds), World.random(replies, seeds, seed=1).ref_probs
    choices = {"reference": world.ref_probs, "other": other}
    ends = []
    for drawn_from, writer in choices.items():
        wins = preferences(world, drawn_from=writer)
        wins = wins if n_pairs is None else sample_preferences(wins, n_pairs)
        for in_loss, ref_probs in choices.items():
            policy = train_dpo(world, beta, wins, ref_probs=ref_probs, steps=300).policy
            ends.append((drawn_from, in_loss, *_distances(policy, world, beta)))
    return _records(ends, ("drawn_from", "in_loss"), ("tv", "kl"))


def label_noise(
    flip_rates: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4),
    beta: float = 0.5,
    *,
    replies: int = 8,
    seeds: int = 8,
    n_pairs: int | None = None,
) -> np.recarray:
    """DPO, cDPO and robust DPO on labels of which a known share is turned round.

    With infinitely many pairs DPO takes flips for weaker preferences and stays too near the reference; cDPO, told the
    rate, smooths once more and stays nearer still; robust DPO is unbiased and ends at pi*. With few pairs
    robust DPO pays for that in variance.

    Args:
        n_pairs: comparisons for each seed; infinitely many if not given.

    Returns:
        a record array with fields method ("dpo", "cdpo", "robust"), flip_rate, and the mean over seeds with its 95 %
        interval (_low, _high) of tv (to pi*) and kl (to the reference).
    """
    from rlhf_lab import losses

    world = _worlds(replies, seeds)
    ends = []
    for method, loss in (("dpo", losses.dpo_loss), ("cdpo", losses.cdpo_loss), ("robust", losses.robust_dpo_loss)):
        for flip_rate in flip_rates:
            wins = preferences(world, flip_rate=flip_rate)
            wins = wins if n_pairs is None else sample_preferences(wins, n_pairs)
            told = {} if method == "dpo" else {"label_smoothing": flip_rate}
            policy = train_dpo(world, beta, wins, loss=partial(loss, **told), steps=250).policy
            ends.append((method, flip_rate, *_distances(policy, world, beta)))
    return _records(ends, ("method", "flip_rate"), ("tv", "kl"))


def _worlds(replies: int, seeds: int) -> World:
    if seeds < 2:
        raise ValueError(f"an interval over seeds needs at least 2 of them, got {seeds}")
    return World.random(replies, seeds, seed=0)


def _distances(policy: np.ndarray, world: World, beta: float) -> list[float]:
    """tv to pi* and kl to the reference, each as mean, low and high over prompts."""
    figures = exact.total_variation(policy, world.optimum(beta)), exact.kl(policy, world.ref_probs)
    return [x for figure in figures for x in _mean_interval(figure)]


def _mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval by Student's t (a bootstrap of a handful is too narrow), cut off at 0."""
    n = len(values)
    half = stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n)
    return values.mean(), max(0.0, values.mean() - half), values.mean() + half


def _records(rows: list[tuple], keys: Sequence[str], figures: Sequence[str], more: Sequence[str] = ()) -> np.recarray:
    names = [*keys, *(name + end for name in figures for end in ("", "_low", "_high")), *more]
    return np.rec.fromrecords(rows, names=names)
