"""One batch of experience, and where its scores come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_lab.errors import UserError

RewardFunction = Callable[..., list[float]]


@dataclass
class Rollout:
    """What was sampled and what is known of it. Prompts are left padded, responses right padded.

    B episodes, P prompt positions, T response positions. `mask` is true on the response's tokens, the end of turn
    included; everything after it is padding and counts nowhere.
    """

    prompts: list  # as in the data set: text, or a conversation
    queries: Tensor  # (B, P) token ids
    query_mask: Tensor  # (B, P)
    responses: Tensor  # (B, T) token ids
    mask: Tensor  # (B, T) bool
    ended: Tensor  # (B,) bool: the reply ended by itself
    completions: list[str] = field(default_factory=list)
    scores: Tensor | None = None  # (B,)
    logps: Tensor | None = None  # (B, T) of the policy that sampled
    ref_logps: Tensor | None = None  # (B, T)
    values: Tensor | None = None  # (B, T)
    rewards: Tensor | None = None  # (B, T)
    advantages: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)

    def rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor, int]:
        """(input_ids, attention_mask, T') of some rows, columns that are padding in all of them cut away."""
        query_mask, mask = self.query_mask[index], self.mask[index]
        start = int(query_mask.any(0).int().argmax())
        length = int(mask.any(0).sum())
        input_ids = torch.cat([self.queries[index][:, start:], self.responses[index][:, :length]], dim=1)
        attention_mask = torch.cat([query_mask[:, start:], mask[:, :length].long()], dim=1)
        return input_ids, attention_mask, length


def response_mask(responses: Tensor, stop_id: int) -> tuple[Tensor, Tensor]:
    """True up to and with the first stop token, (B, T); and whether there is one, (B,)."""
    is_stop = responses == stop_id
    after = (is_stop.cumsum(1) - is_stop.int()) > 0
    return ~after, is_stop.any(1)


def score_by_function(function: RewardFunction, prompts: list, completions: list, columns: dict) -> Tensor:
    """Scores of a Python function of (prompts, completions, **columns), checked: one finite number a reply."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        scores = function(prompts=prompts, completions=completions, **columns)
    except Exception as error:
        raise UserError(f"reward function raised {type(error).__name__}: {error}", where=name, fix="Mend it") from error
    if not hasattr(scores, "__len__") or len(scores) != len(completions):
        got = len(scores) if hasattr(scores, "__len__") else type(scores).__name__
        raise UserError(
            f"expected {len(completions)} scores, got {got}", where=name, fix="Return one number a completion"
        )
    for row, score in enumerate(scores):
        if isinstance(score, (str, type(None))) or float(score) != float(score):
            raise UserError(f"score {row} is {score!r}, not a number", where=name, fix="Return one number a completion")
    return torch.tensor([float(score) for score in scores])
