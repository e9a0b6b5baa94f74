"""From comparisons to rewards: Bradley-Terry, Elo, Plackett-Luce, and how far two raters agree.

P(a beats b) = sigmoid(r_a - r_b). Only differences enter, so rewards are known up to a constant (and, when
every comparison is between two replies to one prompt, up to a constant for each prompt).

Sources
    Bradley and Terry 1952, Biometrika 39 (the model); Plackett 1975, Luce 1959 (rankings);
    Ford 1957 and Hunter 2004, Annals of Statistics 32 (when the maximum-likelihood estimate exists);
    InstructGPT, arXiv 2203.02155, section 3.5 (K ranked replies give K(K-1)/2 pairs);
    Cohen 1960 (kappa).
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

# A difference of 400 Elo points is odds of 10 to 1, so one unit of reward is 400 / ln 10 = 173.7 points.
ELO_POINTS_PER_REWARD = 400 / np.log(10)


def bradley_terry_probability(reward_a: ArrayLike, reward_b: ArrayLike) -> float | np.ndarray:
    """P(a beats b) = sigmoid(reward_a - reward_b); floats give a float, arrays broadcast."""
    difference = np.subtract(reward_a, reward_b, dtype=float)
    probability = np.exp(-np.logaddexp(0.0, -difference))  # 1 / (1 + exp(-x)) overflows below x = -709
    return float(probability) if probability.ndim == 0 else probability


def elo_probability(a: ArrayLike, b: ArrayLike) -> float | np.ndarray:
    """P(a beats b) for Elo ratings: 1 / (1 + 10^((b - a) / 400)). 2000 against 1600 is 0.909.

    Ratings are logarithms of strength. Putting them in the odds form, a / (a + b), gives 0.556 and is wrong.
    """
    return bradley_terry_probability(
        np.divide(a, ELO_POINTS_PER_REWARD, dtype=float), np.divide(b, ELO_POINTS_PER_REWARD, dtype=float)
    )


def fit_bradley_terry(n_items: int, comparisons: Iterable[tuple[int, int]], prior: float = 0.0) -> np.ndarray:
    """Rewards that make the observed comparisons most likely, centred to mean zero: shape (n_items,).

    Args:
        n_items: number of items; they are numbered 0 .. n_items - 1.
        comparisons: (winner, loser) index pairs; a pair may repeat.
        prior: precision (1 / variance) of a Gaussian prior on each reward. Any prior > 0 makes the answer exist
            and be unique; 0 is maximum likelihood.

    Raises:
        ValueError: a pair is malformed, or prior is 0 and the comparisons are not strongly connected. Unless every
            split of the items has a win across it in both directions, some rewards run off to infinity or
            are not tied to the others at all (Ford 1957).
    """
    if prior < 0:
        raise ValueError(f"prior is a precision and must be >= 0, got {prior}")
    wins = _win_counts(n_items, comparisons)
    if prior == 0:
        _require_strongly_connected(wins)

    games = wins + wins.T
    observed = wins.sum(axis=1)  # (n_items,)
    centring = np.full((n_items, n_items), 1 / n_items)  # the likelihood is flat along (1, ..., 1): pin that direction
    rewards = np.zeros(n_items)

    def objective(r: np.ndarray) -> float:
        return float((wins * np.logaddexp(0.0, r[None, :] - r[:, None])).sum() + 0.5 * prior * r @ r)

    for _ in range(200):
        p = bradley_terry_probability(rewards[:, None], rewards[None, :])  # (n_items, n_items)
        gradient = (games * p).sum(axis=1) - observed + prior * rewards  # expected minus observed wins
        weights = games * p * (1 - p)
        hessian = np.diag(weights.sum(axis=1) + prior) - weights + centring
        step = np.linalg.solve(hessian, gradient)
        size, here, slope = 1.0, objective(rewards), gradient @ step
        if slope <= 1e-20 * (1 + abs(here)):
            break
        while size > 1e-10 and objective(rewards - size * step) > here - 1e-4 * size * slope:
            size /= 2  # convex, so a short enough Newton step always descends
        if size <= 1e-10:
            break  # no descent left above rounding error
        rewards = rewards - size * step
        rewards -= rewards.mean()
        if np.abs(size * step).max() < 1e-12:
            break
    return rewards


def sample_comparisons(rewards: ArrayLike, n: int, temperature: float = 1.0, seed: int = 0) -> np.ndarray:
    """`n` comparisons by an annotator with P(a beats b) = sigmoid((r_a - r_b) / temperature): (n, 2) winner, loser.

    Pairs of different items are drawn uniformly. The first k of n comparisons are those of `n` = k, and the same
    random numbers serve every temperature, so what changes with either is due to it alone.
    """
    rewards = np.asarray(rewards, dtype=float)
    if rewards.ndim != 1 or len(rewards) < 2:
        raise ValueError(f"comparing needs at least 2 items, got rewards of shape {rewards.shape}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    draws = np.random.default_rng(seed).random((n, 3))
    a = (draws[:, 0] * len(rewards)).astype(int)
    b = (a + 1 + (draws[:, 1] * (len(rewards) - 1)).astype(int)) % len(rewards)
    a_wins = draws[:, 2] < bradley_terry_probability(rewards[a] / temperature, rewards[b] / temperature)
    return np.where(a_wins[:, None], np.stack([a, b], 1), np.stack([b, a], 1))


def bradley_terry_information(rewards: ArrayLike, games: ArrayLike) -> np.ndarray:
    """Fisher information on the rewards, (n_items, n_items): sum over games of p (1 - p) (e_i - e_j)(e_i - e_j)^T.

    `games[i, j] + games[j, i]` is how often i and j met. Its rows sum to 0: comparisons say nothing about a constant
    added to all rewards.
    """
    rewards, games = np.asarray(rewards, dtype=float), np.asarray(games, dtype=float)
    p = bradley_terry_probability(rewards[:, None], rewards[None, :])
    weights = (games + games.T) * p * (1 - p)
    return np.diag(weights.sum(axis=1)) - weights


def reward_standard_errors(rewards: ArrayLike, comparisons: Iterable[tuple[int, int]]) -> np.ndarray:
    """Standard error of each centred reward that fit_bradley_terry gave for `comparisons`: (n_items,).

    The roots of the diagonal of the information's pseudo-inverse, which is the covariance under "rewards sum to 0".
    For two items and n games it is half of 1 / sqrt(n p (1 - p)), the error of a log-odds. Good where n is not small.
    """
    rewards = np.asarray(rewards, dtype=float)
    information = bradley_terry_information(rewards, _win_counts(len(rewards), comparisons))
    return np.sqrt(np.diag(np.linalg.pinv(information, hermitian=True)))


def plackett_luce_log_prob(rewards_in_ranked_order: ArrayLike) -> float | np.ndarray:
    """log P(ranking) when the best remaining item is chosen again and again, each time by softmax of the rewards.

    Args:
        rewards_in_ranked_order: rewards, best-ranked item first, along the last axis: (..., K).

    Returns:
        sum over k of r_k - logsumexp(r_k, ..., r_K): shape (...). With K = 2 this is log Bradley-Terry.
    """
    rewards = np.asarray(rewards_in_ranked_order, dtype=float)
    if rewards.ndim == 0 or rewards.shape[-1] == 0:
        raise ValueError(f"a ranking needs at least one reward, got shape {rewards.shape}")
    remaining = np.logaddexp.accumulate(rewards[..., ::-1], axis=-1)[..., ::-1]
    log_prob = (rewards - remaining).sum(axis=-1)
    return float(log_prob) if log_prob.ndim == 0 else log_prob


def rankings_to_pairs(ranking: Sequence) -> list[tuple]:
    """All K(K-1)/2 (winner, loser) pairs of K items ranked best first.

    Pairs of one ranking share replies, so they are not independent: InstructGPT keeps them in one batch, because
    shuffled into the data set they made the reward model overfit within an epoch.
    """
    items = list(ranking)
    if any(a == b for a, b in combinations(items, 2)):
        raise ValueError(f"an item stands twice in the ranking {items}")
    return list(combinations(items, 2))


def cohen_kappa(a: ArrayLike, b: ArrayLike) -> float:
    """Agreement of two raters beyond chance: (p_o - p_e) / (1 - p_e). 1 is perfect, 0 is chance.

    NaN when both raters gave one and the same label throughout: chance agreement is then 1 too.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"expected two equally long lists of labels, got shapes {a.shape} and {b.shape}")
    labels = set(a.tolist()) | set(b.tolist())
    observed = np.mean(a == b)
    by_chance = sum(np.mean(a == label) * np.mean(b == label) for label in labels)
    return float((observed - by_chance) / (1 - by_chance)) if len(labels) > 1 else float("nan")


def _win_counts(n_items: int, comparisons: Iterable[tuple[int, int]]) -> np.ndarray:
    """wins[i, j]: how often i beat j."""
    if n_items < 1:
        raise ValueError(f"n_items must be at least 1, got {n_items}")
    pairs = np.asarray(comparisons if isinstance(comparisons, np.ndarray) else list(comparisons))
    if pairs.size == 0:
        return np.zeros((n_items, n_items))
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(
            f"comparisons must be (winner, loser) pairs of integers, got shape {pairs.shape} of {pairs.dtype}"
        )
    for row, (winner, loser) in enumerate(pairs):
        if not (0 <= winner < n_items and 0 <= loser < n_items):
            raise ValueError(f"comparison {row} is ({winner}, {loser}): items are numbered 0 to {n_items - 1}")
        if winner == loser:
            raise ValueError(f"comparison {row} is ({winner}, {loser}): an item cannot beat itself")
    wins = np.zeros((n_items, n_items))
    np.add.at(wins, (pairs[:, 0], pairs[:, 1]), 1)
    return wins


def _require_strongly_connected(wins: np.ndarray) -> None:
    beats, meets = wins > 0, (wins + wins.T) > 0
    group = _reachable(meets)
    if not group.all():
        raise ValueError(
            f"the comparisons do not connect items {_some(~group)} with items {_some(group)}, so their rewards cannot "
            "be compared: compare across the groups, or pass prior= (for example 0.1)"
        )
    for edges, feat in ((beats, "lost to"), (beats.T, "beat")):
        below = _reachable(edges)  # everything item 0 leads to by wins (by losses for the transpose)
        if not below.all():
            raise ValueError(
                f"items {_some(~below)} never {feat} any of the others, so the comparison graph is not strongly "
                "connected and the maximum-likelihood rewards diverge: collect more comparisons, or pass prior= "
                "(for example 0.1)"
            )


def _reachable(edges: np.ndarray) -> np.ndarray:
    """Which items a walk along edges[i, j] from item 0 comes to: bool (n_items,)."""
    seen = np.zeros(len(edges), dtype=bool)
    seen[0] = True
    frontier = seen
    while frontier.any():
        frontier = edges[frontier].any(axis=0) & ~seen
        seen = seen | frontier
    return seen


def _some(selected: np.ndarray, at_most: int = 5) -> str:
    items = np.flatnonzero(selected).tolist()
    return "[" + ", ".join(map(str, items[:at_most])) + (", ...]" if len(items) > at_most else "]")
