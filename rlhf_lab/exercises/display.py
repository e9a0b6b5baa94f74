"""Blocks of text that read well in a terminal and in Jupyter, and values small enough to print.

The words carry the meaning ("Passed", "Not yet"); the bar at the side only repeats it, in colours that the colour-blind
tell apart (Okabe and Ito's blue and vermilion).
"""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np

BARS = {"good": "#0072B2", "warn": "#D55E00", "plain": "#767676"}


@dataclass(frozen=True, repr=False)
class Block:
    """A title and some lines. `tone` is good, warn or plain."""

    title: str
    body: str
    tone: str = "plain"

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in self.body.splitlines())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return (
            f'<div style="border-left: 4px solid {BARS[self.tone]}; padding: 2px 0 2px 12px;">'
            f"<strong>{html.escape(self.title)}</strong>"
            f'<pre style="white-space: pre-wrap; margin: 4px 0 0 0;">{html.escape(self.body)}</pre></div>'
        )


def fill(text: str, indent: str = "") -> str:
    """Prose in lines of at most 100 characters, those after the first set in by `indent`."""
    return textwrap.fill(text, width=100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def show(value: Any, digits: int = 4) -> str:
    """A value as one would write it by hand: numbers to `digits` significant digits, one row of a matrix a line."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 300 else repr(value[:297] + "...")
    if isinstance(value, tuple) and len(value) == 2 and not any(isinstance(part, (int, float)) for part in value):
        return f"({show(value[0], digits)},\n {show(value[1], digits).replace(chr(10), chr(10) + ' ')})"
    try:
        array = as_numbers(value)
    except Exception:  # whatever the learner's object does when it is looked at
        # of other objects only the type: a module's or a function's repr holds paths and addresses
        plain = value is None or isinstance(value, (list, tuple, dict, set, complex))
        text = repr(value) if plain else f"<{type(value).__name__}>"
        return text if len(text) <= 300 else text[:297] + "..."
    return _shown(array, digits)


def _shown(array: np.ndarray, digits: int) -> str:
    if array.ndim == 0:
        return _number(array.item(), digits)
    if array.size > 200:
        return f"array of shape {array.shape}"
    if array.ndim == 1:
        return "[" + ", ".join(_number(x, digits) for x in array.tolist()) + "]"
    if array.ndim == 2:  # columns aligned
        texts = [[_number(x, digits) for x in row] for row in array.tolist()]
        width = max((len(text) for row in texts for text in row), default=0)
        rows = ["[" + ", ".join(text.rjust(width) for text in row) + "]" for row in texts]
    else:
        rows = [_shown(part, digits).replace("\n", "\n ") for part in array]
    return "[" + ",\n ".join(rows) + "]"


def _number(x: float, digits: int) -> str:
    return f"{x:.{digits}g}" if isinstance(x, float) else str(x)


def labelled(name: str, text: str) -> str:
    """`name = text`, with the further lines of `text` set under its first."""
    head = f"{name} = "
    return head + text.replace("\n", "\n" + " " * len(head))


def as_numbers(value: Any) -> np.ndarray:
    """Python numbers, lists of them, numpy arrays and torch tensors as one numpy array, of float unless whole.

    Raises TypeError for anything that is not made of real numbers, ValueError for ragged lists.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        array = (value.double() if value.is_floating_point() else value).numpy()
    elif isinstance(value, (list, tuple)):
        array = np.array([as_numbers(part) for part in value]) if value else np.zeros(0)
    else:
        array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"not numbers: {type(value).__name__}")
    return array
