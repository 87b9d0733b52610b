"""The heat map of the kept fraction: layers down, kinds of tensors across; those of no layer in a column beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from ken_core.viz.canvas import Canvas, Drawing, Scale, label_ticks, viridis
from ken_core.viz.names import place
from ken_core.viz.tally import Tally, percent

_CELL_WIDTH, _CELL_HEIGHT = 46, 24
_TICKS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_DARK = 0.55
"""Share of the scale below which colours are so dark that white text is readable on them."""


def draw_fractions(
    title: str, note: str, tallies: Mapping[str, Tally], short: Mapping[str, str], top: float
) -> Drawing:
    """Draw the kept fraction of every tensor of a base.

    Args:
        tallies: the counts of every tensor by name; columns are in the order in which their kinds first appear.
        short: kind -> the heading of its column.
        top: the fraction at which the colours end, the same for all deltas that are compared.
    """
    canvas = Canvas()
    canvas.title(title, note, free=10)
    # a few tensors (layer norms) are kept almost in full: a linear scale would show all matrices in one colour
    norm = PowerNorm(0.5, vmin=top * 1e-9, vmax=top)
    ticks = tuple(tick for tick in _TICKS if tick <= top)
    scale = Scale(viridis(), norm, "kept (square-root scale)", ticks, extend="min", percent=True)
    layers, kinds, grid = _grid(tallies)
    left, height = 0, len(layers) * _CELL_HEIGHT
    if kinds:
        axes = canvas.axes(0, 0, len(kinds) * _CELL_WIDTH, height)
        _cells(axes, grid, scale)
        label_ticks(axes, "y", range(len(layers)), [str(layer) for layer in layers])
        label_ticks(axes, "x", range(len(kinds)), [short[k] for k in kinds], rotation=45, ha="right", va="top")
        axes.tick_params(axis="x", pad=1)
        axes.set_ylabel("layer", fontsize=9)
        axes.set_xlabel("kind of tensor", fontsize=9)
        left = len(kinds) * _CELL_WIDTH + 40
    if others := {name: one.fraction for name, one in tallies.items() if place(name).layer is None}:
        height = max(height, len(others) * _CELL_HEIGHT)
        axes = canvas.axes(left, 0, _CELL_WIDTH, len(others) * _CELL_HEIGHT)
        _cells(axes, np.array([[fraction] for fraction in others.values()]), scale)
        label_ticks(axes, "y", range(len(others)), [short[name] for name in others])
        axes.yaxis.tick_right()
        axes.set_xticks([])
        axes.set_xlabel("no layer", fontsize=9)
        left += _CELL_WIDTH + 30 + 6 * max(len(short[name]) for name in others)
    canvas.colour_bar(scale, left + 10, 0, max(120, min(height, 300)))
    return canvas.finish()


def _grid(tallies: Mapping[str, Tally]) -> tuple[list[int], list[str], npt.NDArray[np.float64]]:
    """Layers, kinds, and fractions of shape (layers, kinds), NaN where a layer has no such tensor."""
    places = {name: place(name) for name in tallies}
    layers = sorted({p.layer for p in places.values() if p.layer is not None})
    kinds = list(dict.fromkeys(p.kind for p in places.values() if p.layer is not None))
    grid = np.full((len(layers), len(kinds)), np.nan)
    for name, p in places.items():
        if p.layer is not None:
            grid[layers.index(p.layer), kinds.index(p.kind)] = tallies[name].fraction
    return layers, kinds, grid


def _cells(axes: Axes, grid: npt.NDArray[np.float64], scale: Scale) -> None:
    """Draw a coloured cell with a number for each fraction; a dash where there is no such tensor."""
    there = ~np.isnan(grid)
    painted = np.where(there[..., None], scale.paint(np.nan_to_num(grid)), 255)
    axes.imshow(painted.astype(np.uint8), interpolation="nearest", aspect="auto")
    axes.tick_params(length=0)
    for (row, column), fraction in np.ndenumerate(grid):
        light = np.isnan(fraction) or fraction == 0 or scale.norm(fraction) > _DARK
        text = percent(fraction).removesuffix("%") if there[row, column] else "–"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="#000000" if light else "#ffffff")
