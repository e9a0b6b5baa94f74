"""Test inputs of the exercises: fp64, seeded."""

from __future__ import annotations

import torch
from torch import Tensor


def tensor(*values: float | list) -> Tensor:
    """tensor(1, 2) has shape (2,), tensor([1, 2]) has shape (1, 2)."""
    return torch.tensor(values, dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_padding(x: Tensor, mask: Tensor, junk: float) -> Tensor:
    """x, with a number at the padding that shows when it is read."""
    return torch.where(mask.bool(), x, torch.full_like(x, junk))
