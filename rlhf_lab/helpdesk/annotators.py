"""Simulated annotators: they compare two replies as people do, noisily, from the gold reward.

P(a beats b) = sigmoid((gold(a) - gold(b)) / temperature + length_bias * (words(a) - words(b))), then with probability
`flip_rate` the label is turned round. Bradley and Terry 1952; the flips are those of robust DPO (arXiv 2403.00409).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from random import Random

from rlhf_lab.helpdesk.gold import gold_reward
from rlhf_lab.preferences import cohen_kappa


@dataclass(frozen=True)
class Annotator:
    """One simulated person. Temperature in gold units, length bias in log-odds a word, flip rate in [0, 0.5]."""

    temperature: float = 0.3
    length_bias: float = 0.0
    flip_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if not 0 <= self.flip_rate <= 0.5:
            raise ValueError(f"flip_rate must lie in [0, 0.5], got {self.flip_rate}")

    def probability(self, message: str, reply_a: str, reply_b: str) -> float:
        """The probability that this annotator prefers `reply_a`, flips included."""
        gap = (gold_reward(message, reply_a) - gold_reward(message, reply_b)) / self.temperature
        gap += self.length_bias * (len(reply_a.split()) - len(reply_b.split()))
        prefers = 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))
        return prefers * (1 - self.flip_rate) + (1 - prefers) * self.flip_rate

    def prefers_first(self, message: str, reply_a: str, reply_b: str, rng: Random) -> bool:
        """One label."""
        return rng.random() < self.probability(message, reply_a, reply_b)


def agreement(labels: list[list[bool]]) -> dict[str, float]:
    """How much several annotators agree: mean pairwise share of equal labels, and mean pairwise Cohen's kappa.

    `labels[k][i]` is annotator k's label of pair i; at least two annotators with the same number of labels.
    """
    if len(labels) < 2 or len({len(row) for row in labels}) != 1 or not labels[0]:
        raise ValueError("agreement needs at least two annotators with the same, non-zero number of labels")
    pairs = list(combinations(labels, 2))
    equal = [sum(x == y for x, y in zip(a, b, strict=True)) / len(a) for a, b in pairs]
    return {"share": sum(equal) / len(pairs), "kappa": sum(cohen_kappa(a, b) for a, b in pairs) / len(pairs)}
