"""Figures that move: artists are made once, and a new number changes where they stand.

Axes, ticks, limits, legends and layout never change, so they are drawn once and kept as a background. What moves is
made by `curve`, `note` and `bars`, and is drawn on top, which takes a third of the time or less. A picture moved to
some numbers is, to the byte, the picture drawn at them.

No mathtext: it is slow, and with matplotlib 3.11 text drawn after it on the same canvas can come out in another font.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from rlhf_lab.figures.base import INK, LabFigure

# The three of Okabe and Ito's colours that stand out from white by 3:1 and more. Lines differ in dashes too.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
MARK = {"marker": "o", "markersize": 9, "linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 1.2}


class LiveFigure(LabFigure):
    """A LabFigure that `move` takes to other numbers by moving its artists.

    Attributes:
        numbers: what it shows, by name; `move` takes the same names.
        says: one sentence about these numbers, the part of the alt text that changes.
    """

    numbers: dict[str, Any]
    says: str = ""
    _background = None

    def start(self, about: str, update: Callable[..., str], **numbers: Any) -> LiveFigure:
        """Show `numbers` for the first time, and fix the layout.

        Args:
            about: a sentence on what the figure shows, whatever the numbers.
            update: takes all numbers by name, moves the artists and returns `says`.
        """
        self._about, self._update, self.numbers = about, update, {}
        self.move(**numbers)
        self.draw_without_rendering()
        self.set_layout_engine("none")
        return self

    def move(self, **numbers: Any) -> LiveFigure:
        """Show other numbers; those left out stay."""
        numbers = self.numbers | numbers
        self.says = self._update(**numbers)
        self.numbers = numbers
        self.rlhf_alt = f"{self._about} {self.says}"
        return self


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **subplots):
    """A LiveFigure of that size in inches, and its axes: one, or an array (rows * columns,)."""
    figure = LiveFigure(figsize=(width, height))
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **subplots).ravel()
    return figure, axes[0] if len(axes) == 1 else axes


def pixels(figure: LiveFigure) -> np.ndarray:
    """The figure drawn on its Agg canvas: (height, width, 4) bytes."""
    canvas = figure.canvas
    if figure._background is None:
        canvas.draw()  # leaves out what is animated
        figure._background = canvas.copy_from_bbox(figure.bbox)
        moving = (a for a in figure.findobj() if a.get_animated())
        figure._moving = sorted(moving, key=lambda artist: artist.zorder)
    canvas.restore_region(figure._background)
    for artist in figure._moving:
        artist.draw(canvas.get_renderer())
    return np.asarray(canvas.buffer_rgba())


def quick_png(figure: LiveFigure) -> bytes:
    """The figure as PNG at its own dpi, hardly compressed: what a slider can wait for."""
    buffer = BytesIO()
    Image.fromarray(pixels(figure)[..., :3]).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def curve(axes: Axes, x=(), y=(), **style) -> Line2D:
    """A line that moves."""
    (line,) = axes.plot(x, y, **style)
    return _moving(line)


def note(axes: Axes, x: float = 0, y: float = 0, **style) -> Text:
    """Text that changes, at (x, y) in fractions of the axes, on a patch of the background."""
    patch = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    style = {"color": INK, "weight": "bold", "bbox": patch, "zorder": 4, **style}
    return _moving(axes.text(x, y, "", transform=axes.transAxes, **style))


def note_above(axes: Axes) -> Text:
    """A note over the right end of the axes, where no curve comes."""
    return note(axes, 1, 1.02, ha="right", va="bottom")


def bars(axes: Axes, x, heights, width: float, **style) -> BarContainer:
    """Bars that change in height."""
    container = axes.bar(x, heights, width, **style)
    for bar in container:
        _moving(bar)
    return container


def set_heights(container: BarContainer, heights) -> None:
    """Give each bar its height."""
    for bar, height in zip(container, heights, strict=True):
        bar.set_height(height)


def _moving(artist):
    artist.set_animated(True)
    artist.set_in_layout(False)  # which must not depend on the numbers
    return artist


def plain_log_axis(axis, ticks) -> None:
    """Ticks of a logarithmic axis as plain numbers: 0.1, 1, 10."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
