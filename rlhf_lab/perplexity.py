"""Perplexity: exp of the mean of -log p over tokens, of a batch, and of many replies with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.evaluate import Interval

if TYPE_CHECKING:
    from torch import Tensor


def perplexity(logps: Tensor, mask: Tensor) -> Tensor:
    """exp of the mean of -log p over the tokens with mask 1: both (batch, seq) -> a scalar. All tokens weigh alike."""
    return (-(logps * mask).sum() / mask.sum()).exp()


def perplexity_interval(logps: Sequence[float], lengths: Sequence[int], seed: int = 0, n_boot: int = 2000) -> Interval:
    """Perplexity a token over many replies, with the 95 % percentile bootstrap interval over replies.

    Args:
        logps: log p of each whole reply, (n,), in nats. lengths: its tokens, the EOS included, (n,).
    """
    logps, lengths = np.asarray(logps, dtype=float), np.asarray(lengths, dtype=float)
    # Tokens of one reply hang together, so whole replies are drawn, and both sums go with them.
    drawn = np.random.default_rng(seed).integers(len(logps), size=(n_boot, len(logps)))
    low, high = np.percentile(np.exp(-logps[drawn].sum(1) / lengths[drawn].sum(1)), [2.5, 97.5])
    return Interval(float(np.exp(-logps.sum() / lengths.sum())), float(low), float(high))
