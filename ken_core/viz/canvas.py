"""A drawing surface measured in pixels, and its colour scales. Importing this module needs matplotlib.

Pictures of matrices are exact only where a block covers a whole number of pixels: matplotlib's own layout engines put
axes at fractions of a pixel and would drop or double rows. So axes are placed by hand, from the top left corner, and
the saved picture is cut to what was drawn, with a margin.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from ken_core.viz.labels import printable
from ken_core.viz.palette import png

_PIXELS_PER_INCH = 100
_DENSITY = 2
"""Pixels of the file for each pixel of the layout, so that text stays sharp on dense screens."""
_MARGIN = 12
_FRAME_POINTS = 0.72  # one pixel of the layout
_INK, _FRAME, _NOTHING = "#1b1b1b", "#8a8a8a", "#e9e9e9"
_LONGEST_TEXT = 90
_SHADES = 120
"""Colours of a scale: more than an eye tells apart, and few enough for a palette to hold all of them unchanged."""

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that colour-blind people can tell apart (Okabe and Ito, 2008), in the order they are used."""


@dataclass(frozen=True)
class Drawing:
    """A finished picture."""

    png: bytes
    width: int
    """The width in pixels at which to show the picture; the file has more pixels."""


@dataclass(frozen=True)
class Scale:
    """The meaning of colours; `extend` and `ticks` are as matplotlib's colour bar takes them."""

    colours: Colormap
    norm: Normalize
    label: str
    ticks: tuple[float, ...] | None = None
    tick_labels: tuple[str, ...] | None = None
    extend: str = "neither"
    percent: bool = False

    def paint(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Colours for values of shape (rows, columns): uint8, shape (rows, columns, 4)."""
        painted: npt.NDArray[np.uint8] = self.colours(self.norm(values), bytes=True)
        return painted


def viridis() -> Colormap:
    """viridis without its lightest end, which is too close to the grey of 'nothing'; values below it get that grey."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.93, _SHADES))
    return ListedColormap(shades).with_extremes(under=_NOTHING)


def viridis_steps(count: int) -> ListedColormap:
    """The grey of 'nothing', then `count` shades."""
    places = np.linspace(0.25, 0.93, count) if count > 1 else np.array([0.25])
    return ListedColormap([_NOTHING, *matplotlib.colormaps["viridis"](places).tolist()])


def plain(text: str) -> str:
    """Text as a figure shows it: printable, on one line; if it is too long, its middle is left out."""
    line = printable(text)
    if len(line) <= _LONGEST_TEXT:
        return line
    half = _LONGEST_TEXT // 2
    return f"{line[:half]}…{line[-half:]}"


class Canvas:
    """A figure whose axes and texts are placed at pixels from its top left corner; it grows as needed."""

    def __init__(self) -> None:
        self._figure = Figure(figsize=(10, 10), dpi=_PIXELS_PER_INCH)
        self._side = 10 * _PIXELS_PER_INCH
        FigureCanvasAgg(self._figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        side = self._side
        made = self._figure.add_axes((left / side, 1 - (top + height) / side, width / side, height / side))
        made.tick_params(labelsize=8, color=_FRAME, labelcolor=_INK)
        for spine in made.spines.values():
            spine.set_color(_FRAME)
        return made

    def text(self, left: float, top: float, text: str, *, size: float = 9, **options: Any) -> None:
        """Draw text with its top left corner at a pixel; the other options are matplotlib's."""
        style: dict[str, Any] = {"va": "top", "ha": "left", "color": _INK, **options}
        self._figure.text(
            left / self._side, 1 - top / self._side, plain(text), fontsize=size, parse_math=False, **style
        )

    def title(self, text: str, note: str = "", *, free: float = 30) -> None:
        """Draw a title and a line of smaller text under it, `free` pixels above axes whose top is at 0."""
        self.text(0, -free - (48 if note else 24), text, size=11.5, fontweight="bold")
        self.text(0, -free - 24, note, size=9, color="#4d4d4d")

    def matrix(self, axes: Axes, values: npt.NDArray[Any], scale: Scale, rows: int, columns: int) -> None:
        """Show values as blocks of one colour each; the axes count elements, `rows` down and `columns` across."""
        for spine in axes.spines.values():  # around the matrix: on its edge it would cover the outermost elements
            spine.set_linewidth(_FRAME_POINTS)
            spine.set_position(("outward", _FRAME_POINTS / 2))
        axes.imshow(
            scale.paint(values), interpolation="nearest", aspect="auto", extent=(0, columns, rows, 0), origin="upper"
        )
        top, bottom = axes.set_yticks([0, rows], ["0", f"{rows:,}"])
        left, right = axes.set_xticks([0, columns], ["0", f"{columns:,}"])
        top.label1.set_verticalalignment("top")
        bottom.label1.set_verticalalignment("bottom")
        left.label1.set_horizontalalignment("left")
        right.label1.set_horizontalalignment("right")

    def colour_bar(self, scale: Scale, left: float, top: float, height: float) -> None:
        axes = self.axes(left, top, 14, height)
        bar = self._figure.colorbar(
            ScalarMappable(scale.norm, scale.colours),
            cax=axes,
            extend=scale.extend,
            extendfrac=10 / height,
            ticks=scale.ticks,
        )
        bar.set_label(scale.label, fontsize=8.5, color=_INK)
        bar.outline.set_edgecolor(_FRAME)
        if scale.tick_labels:
            bar.ax.set_yticklabels(scale.tick_labels, fontsize=8)
        elif scale.percent:
            bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")

    def finish(self) -> Drawing:
        """The picture as a PNG file, cut to what was drawn."""
        with warnings.catch_warnings():
            # characters that the font lacks are drawn as boxes; the page shows such a file name in full
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            box = self._figure.get_tightbbox()
            edges = [math.floor(v * _PIXELS_PER_INCH) - _MARGIN for v in (box.x0, box.y0)]
            edges += [math.ceil(v * _PIXELS_PER_INCH) + _MARGIN for v in (box.x1, box.y1)]
            file = io.BytesIO()
            self._figure.savefig(
                file,
                format="png",
                dpi=_DENSITY * _PIXELS_PER_INCH,
                bbox_inches=Bbox.from_extents(*(edge / _PIXELS_PER_INCH for edge in edges)),
                pil_kwargs={"compress_level": 0},
            )
        return Drawing(png(Image.open(file)), edges[2] - edges[0])


def label_ticks(axes: Axes, which: str, places: Sequence[float], labels: Sequence[str], **options: Any) -> None:
    """Put texts beside the ``x`` or ``y`` axis; they are never read as formulas, whatever signs they hold."""
    put = axes.set_xticks if which == "x" else axes.set_yticks
    put(places, [plain(label) for label in labels], parse_math=False, fontsize=8, **options)
