"""One batch of experience."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Rollout:
    """What was sampled and what is known of it. Every row ends at the last column: padding is on the left only.

    B episodes of at most W tokens, prompt and response, at most T of them the response. `mask` is true on the
    response's tokens, the end of turn included.
    """

    prompts: list  # as in the data set: text, a conversation, or token ids
    input_ids: Tensor  # (B, W)
    attention_mask: Tensor  # (B, W)
    mask: Tensor  # (B, T) bool
    ended: Tensor  # (B,) bool: the reply ended by itself
    completions: list[str] = field(default_factory=list)
    columns: dict[str, list] = field(default_factory=dict)  # of the data set, for reward functions
    scores: Tensor | None = None  # (B,)
    logps: Tensor | None = None  # (B, T) of the policy that sampled
    ref_logps: Tensor | None = None  # (B, T)
    values: Tensor | None = None  # (B, T)
    rewards: Tensor | None = None  # (B, T)
    advantages: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)

    @property
    def responses(self) -> Tensor:
        """Token ids of the responses, (B, T); prompt or padding where `mask` is false."""
        return self.input_ids[:, -self.mask.shape[1] :]

    def chunks(self, rows: Tensor, size: int) -> list[Tensor]:
        """`rows` in groups of at most `size`, like lengths together: a group is as wide as its longest row."""
        lengths = self.attention_mask[rows].sum(1)
        return list(rows[lengths.argsort(descending=True, stable=True)].split(size))

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, int]:
        """(input_ids, attention_mask, T') of some rows, columns that are padding in all of them cut away."""
        width, length = int(self.attention_mask[index].sum(1).max()), int(self.mask[index].sum(1).max())
        return self.input_ids[index, -width:], self.attention_mask[index, -width:], length


def response_mask(responses: Tensor, stop_id: int) -> tuple[Tensor, Tensor]:
    """True up to and with the first stop token, (B, T); and whether there is one, (B,)."""
    is_stop = responses == stop_id
    after = (is_stop.cumsum(1) - is_stop.int()) > 0
    return ~after, is_stop.any(1)


def align_right(x: Tensor, padding: Tensor) -> Tensor:
    """Each row of x, (B, W), turned to the right by its number of columns in `padding`, (B,): they come first."""
    width = x.shape[1]
    return x.gather(1, (torch.arange(width, device=x.device) - padding[:, None]) % width)
