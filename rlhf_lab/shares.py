"""How much of what a KL allows a policy has: the frontier from a reference's replies, shares of it, and best-of-n.

A policy's rewards and KL come as means a prompt, (prompts,), the same prompts for all; intervals resample prompts, for
policies and frontier at once.

Sources: the frontier and its slope: rlhf_lab.exact; best-of-n's KL: Beirami et al., arXiv 2401.01879.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlhf_lab import exact
from rlhf_lab.evaluate import Interval, mean_interval

MIN_EFFECTIVE_SAMPLES = 10
BETAS = np.geomspace(4, 0.05, 30)  # of the frontier, in standard deviations of the reward
N_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Frontier:
    """The most reward that any policy can have at a KL from the reference, as far as its replies let one say."""

    points: np.recarray  # of exact.snis_frontier, KL ascending
    by_prompt: np.ndarray  # (1 + points, 2, prompts): KL and reward, the reference itself first
    ended: str  # why there is no further point, or "" where all betas could be estimated

    @property
    def start(self) -> float:
        """The reference's reward."""
        return float(self.by_prompt[0, 1].mean())

    @property
    def end(self) -> float:
        """The KL of the last point."""
        return float(self.points.kl[-1])

    @cached_property
    def draws(self) -> np.ndarray:
        """Means over prompts, as they are and then resampled: (1 + points, 2, 1 + N_BOOTSTRAP)."""
        at = resampled(self.by_prompt.shape[2])
        return np.concatenate([self.by_prompt.mean(2)[..., None], self.by_prompt[..., at].mean(3)], axis=2)

    def gain(self, kl: float, draw: int = 0) -> tuple[float, float]:
        """(least, most) that the frontier can be above the reference at this KL; of a resample, by its number.

        The two agree up to the last point. Beyond it the frontier still rises, by no more than its slope there, which
        is beta, for it is concave.
        """
        kls, rewards = self.draws[:, 0, draw], self.draws[:, 1, draw]
        least = float(np.interp(kl, kls, rewards) - rewards[0])
        return least, least + float(self.points.beta[-1]) * max(0.0, kl - float(kls[-1]))


def frontier(rewards: ArrayLike, min_effective_samples: float = MIN_EFFECTIVE_SAMPLES) -> Frontier:
    """The frontier from rewards of the reference's own replies, (prompts, samples), as far as they reach.

    Betas go down from 4 standard deviations of the reward until one leaves too few effective samples.
    """
    rewards = np.asarray(rewards, dtype=float)
    points, ended = [], ""
    for beta in rewards.std() * BETAS:
        try:
            points.append(exact.snis_frontier(rewards, [beta], min_effective_samples, n_bootstrap=N_BOOTSTRAP))
        except ValueError as error:
            ended = str(error)
            break
    if not points:
        raise ValueError(f"no point of the frontier can be estimated: {ended}")
    curve = np.concatenate(points).view(np.recarray)
    estimates = [np.array([exact.snis_estimate(r, beta)[0] for r in rewards]).T for beta in curve.beta]
    first = np.stack([np.zeros(len(rewards)), rewards.mean(1)])
    return Frontier(curve, np.stack([first, *estimates]), ended)


def share_of_frontier(reward: float, kl: float, start: float, kls: ArrayLike, rewards: ArrayLike) -> float:
    """A policy's gain over the reference as a share of the frontier's gain at the policy's own KL.

    Args:
        reward, kl: the policy's. start: the reference's reward, at KL 0.
        kls, rewards: points of the frontier, (n,), KL ascending from above 0; straight lines between them.
    """
    allowed = np.interp(kl, np.concatenate([[0.0], kls]), np.concatenate([[start], rewards])) - start
    return float((reward - start) / allowed)


def share(reward: ArrayLike, kl: ArrayLike, front: Frontier) -> Interval:
    """A policy's share of what `front` allows at its KL, from its means a prompt, (prompts,) each.

    Beyond the frontier's last point only bounds are known: value and low are then of the smallest share that they
    leave, high of the largest. Prompts are resampled for policy and frontier together; a resample whose KL is not above
    0 allows nothing, and its share is infinite.
    """
    reward, kl = np.asarray(reward, dtype=float), np.asarray(kl, dtype=float)
    at = resampled(len(reward))
    rewards, kls = (np.concatenate([[x.mean()], x[at].mean(1)]) for x in (reward, kl))
    gains = rewards - front.draws[0, 1]
    allowed = np.array([front.gain(distance, draw) for draw, distance in enumerate(kls)])  # (draws, 2): least and most
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(allowed > 0, gains[:, None] / allowed, np.copysign(np.inf, gains)[:, None])
    smallest, largest = shares.min(1), shares.max(1)  # of a loss the larger part is that of the lower frontier
    low, high = np.percentile(smallest[1:], 2.5, method="lower"), np.percentile(largest[1:], 97.5, method="higher")
    return Interval(float(smallest[0]), float(low), float(high))


class BestOfN(NamedTuple):
    """The reference, n replies a prompt, the best by one reward kept."""

    n: int
    kl: Interval  # estimate: exact on the empirical distribution of the replies at hand
    bound: float  # log n - (n - 1) / n
    rewards: dict[str, np.ndarray]  # means a prompt, (prompts,)


def best_of_n(rewards: Mapping[str, ArrayLike], by: str, ns: Iterable[int]) -> list[BestOfN]:
    """Best-of-n by the reward `by`, from rewards of the reference's replies, name -> (prompts, samples).

    Not drawn but computed: each reply's chance to be the best of n drawn from those at hand. That is exact for their
    empirical distribution, so n has to stay well below the number of samples; here at most an eighth.
    """
    found = {name: np.asarray(values, dtype=float) for name, values in rewards.items()}
    samples = found[by].shape[1]
    even = np.full(samples, 1 / samples)
    results = []
    for n in ns:
        if n > samples / 8:
            raise ValueError(f"best of {n} from {samples} samples a prompt would see too few: at most {samples // 8}")
        weights = np.stack([exact.best_of_n(even, row, n) for row in found[by]])
        kl = mean_interval([float(exact.kl(w, even)) for w in weights])
        means = {name: (weights * values).sum(1) for name, values in found.items()}
        results.append(BestOfN(n, kl, exact.best_of_n_kl_bound(n), means))
    return results


def resampled(n_prompts: int) -> np.ndarray:
    """Indices (N_BOOTSTRAP, prompts): the same resamples for whatever is compared."""
    return np.random.default_rng(0).integers(n_prompts, size=(N_BOOTSTRAP, n_prompts))
