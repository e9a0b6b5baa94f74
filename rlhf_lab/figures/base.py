"""How every figure is made, shown and saved.

No pyplot: a figure opens no window and leaves no setting behind, and looks the same whatever theme is set. A model has
one colour, marker and hatch throughout (Okabe and Ito's palette, jfly.uni-koeln.de/color), so a figure can also be read
in grey. `alt_text(figure)` is a sentence with its numbers, for who cannot see it.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rlhf_lab.evaluate import Interval


class Look(NamedTuple):
    """How one model is drawn, everywhere."""

    label: str
    colour: str
    marker: str
    hatch: str


LOOKS = {
    "base": Look("Base", "#999999", "s", ""),
    "sft": Look("SFT", "#0072B2", "o", "//"),
    "reward": Look("Reward model", "#CC79A7", "P", "xx"),
    "ppo": Look("PPO", "#D55E00", "^", "\\\\"),
    "dpo": Look("DPO", "#009E73", "D", ".."),
}
SPARE_LOOKS = (("#E69F00", "v", "++"), ("#56B4E9", "X", "oo"), ("#F0E442", "p", "**"))
INK = "#222222"
FAINT = "#767676"  # 4.5:1 on white
CSS_PIXELS_PER_INCH = 100

STYLE = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "hatch.color": "white",
    "hatch.linewidth": 1.0,
}
ERROR_BARS = {"ecolor": INK, "elinewidth": 1.3, "capsize": 3, "capthick": 1.3}


class LabFigure(Figure):
    """A Figure with its alt text, which shows itself as the last line of a notebook cell without pyplot."""

    rlhf_alt: str = ""

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        png = base64.b64encode(to_png(self)).decode("ascii")
        # The width makes text of one size in all figures, and sharp on a screen of 150 pixels an inch.
        metadata = {"alt": self.rlhf_alt, "width": self.css_width}
        return {"image/png": png, "text/plain": self.rlhf_alt}, {"image/png": metadata}

    @property
    def css_width(self) -> int:
        """How wide a page shows it, in CSS pixels."""
        return round(CSS_PIXELS_PER_INCH * self.get_figwidth())


def alt_text(figure: Figure) -> str:
    """One or two sentences that say what the figure shows, numbers included."""
    return getattr(figure, "rlhf_alt", "")


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure. A palette looks the same at a third of the bytes."""
    drawn, buffer = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=STYLE["savefig.dpi"], facecolor="white", metadata={"Software": None})
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> Path:
    """Write the figure to `path` as PNG, its alt text in the file as the description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Software": None, "Description": alt_text(figure)}
    figure.savefig(path, format="png", dpi=STYLE["savefig.dpi"], facecolor="white", metadata=metadata)
    return path


def look(model: str) -> Look:
    """The look of a model. A name not in LOOKS gets a spare one by its letters, always the same."""
    if model in LOOKS:
        return LOOKS[model]
    return Look(model, *SPARE_LOOKS[sum(map(ord, model)) % len(SPARE_LOOKS)])


def styled(draw: Callable[..., LabFigure]) -> Callable[..., LabFigure]:
    """Draw with our style and nothing of the reader's (a dark theme, say), and leave theirs as it was."""

    @functools.wraps(draw)
    def styled(*args, **kwargs) -> LabFigure:
        with matplotlib.style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return styled


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **subplots):
    """A figure of that size in inches, and its axes: one, or an array (rows * columns,)."""
    figure = LabFigure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False, **subplots).ravel()
    return figure, axes[0] if len(axes) == 1 else axes


def described(figure: LabFigure, text: str) -> LabFigure:
    figure.rlhf_alt = text
    return figure


def legend_above(figure: LabFigure, axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=max(1, len(names)), handlelength=2.2)


def spread(intervals: Sequence[Interval]) -> np.ndarray:
    """Distances (2, n) from value to low and to high, as errorbar takes them; never below 0."""
    below = [max(0.0, interval.value - interval.low) for interval in intervals]
    above = [max(0.0, interval.high - interval.value) for interval in intervals]
    return np.array([below, above])
