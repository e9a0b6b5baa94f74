"""Rewards that are Python functions, called as TRL's GRPOTrainer calls them, and checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_lab.errors import UserError

RewardFunction = Callable[..., Sequence[float]]


def score_by_function(function: RewardFunction, prompts: list, completions: list, **known: Any) -> list[float]:
    """Call function(prompts=..., completions=..., **known) and return one finite number a completion.

    A completion is text where the prompt is text, else a conversation of one message. Of `known` (the data set's other
    columns, completion_ids) the function gets what its signature names, or all where it takes **kwargs.
    Raises UserError with the function's name when it raises or returns anything else.
    """
    name = getattr(function, "__name__", type(function).__name__)
    parameters = inspect.signature(function).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        known = {key: value for key, value in known.items() if key in parameters}
    try:
        scores = function(prompts=prompts, completions=completions, **known)
    except Exception as error:
        raise UserError(f"reward function raised {type(error).__name__}: {error}", where=name, fix="Mend it") from error
    fix = "Return one number a completion"
    sized = hasattr(scores, "__len__") and not isinstance(scores, str)
    if not sized or len(scores) != len(completions):
        got = len(scores) if sized else type(scores).__name__
        raise UserError(f"expected {len(completions)} scores, got {got}", where=name, fix=fix)
    for row, score in enumerate(scores):
        try:
            bad = isinstance(score, str) or not math.isfinite(score)
        except (TypeError, ValueError):
            bad = True
        if bad:
            raise UserError(f"score {row} is {score!r}, not a finite number; its prompt is {prompts[row]!r}"[:300],
                            where=name, fix=fix)  # fmt: skip
    return [float(score) for score in scores]
