"""The views of the paper: one matrix, the kept neighbours of each element, and both across layers. And the sizes of
low-rank shifts, which have no kept elements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log

import numpy as np
from matplotlib.colors import BoundaryNorm, Normalize

from ken_core.viz.canvas import Canvas, Drawing, Scale, viridis, viridis_steps
from ken_core.viz.measure import Pooled
from ken_core.viz.survey import STEEPEST, Shift, View
from ken_core.viz.tally import percent

_SINGLE_SIDES, _LAYER_SIDES = (360, 1100), (100, 170)
"""The least and the most pixels of a matrix's longer side."""
_ABREAST = 6
_LEAST_PITCH = 112
"""The least pixels from one matrix to the next, so that a line of text fits above each."""
Row = tuple[str, list[Pooled], Scale]
"""A name, the values of some matrices, and the scale of colours that they share."""

_CLIP = 99.5
"""A scale ends at this percentile of the blocks that have anything kept, so that a few full blocks do not darken it."""


def draw_matrix(title: str, note: str, view: View) -> Drawing:
    """Draw one matrix: its kept elements, and the neighbours kept around each element."""
    return _alone(title, note, view, _pair([view]))


def draw_shift(title: str, note: str, shift: Shift) -> Drawing:
    """Draw how far each element of one matrix is shifted."""
    return _alone(title, note, shift, [_sizes([shift])])


def draw_layers(title: str, note: str, views: Sequence[tuple[int, View]]) -> Drawing:
    """Draw one kind of matrix in all layers, side by side: above the kept elements, below the kept neighbours."""
    said = [f"layer {layer}: {percent(view.tally.fraction)}" for layer, view in views]
    drawn = [view for _, view in views]
    return _side_by_side(title, note, said, drawn, _pair(drawn))


def draw_layer_shifts(title: str, note: str, shifts: Sequence[tuple[int, Shift]]) -> Drawing:
    """Draw how far the elements of one kind of matrix are shifted in all layers, side by side."""
    said = [f"layer {layer}: rank {shift.rank}" for layer, shift in shifts]
    drawn = [shift for _, shift in shifts]
    return _side_by_side(title, note, said, drawn, [_sizes(drawn)])


def _alone(title: str, note: str, drawn: View | Shift, rows: Sequence[Row]) -> Drawing:
    canvas = Canvas()
    canvas.title(title, note)
    width, height = _panel(drawn, rows[0][1][0].shape, _SINGLE_SIDES)
    beside = width <= 1.3 * height
    for i, (name, values, scale) in enumerate(rows):
        left, top = (i * (width + 170), 0) if beside else (0, i * (height + 85))
        axes = canvas.axes(left, top, width, height)
        canvas.text(left, top - 22, name, size=10)
        canvas.matrix(axes, values[0], scale, drawn.rows, drawn.columns)
        axes.set_xlabel("column", fontsize=9)
        axes.set_ylabel("row", fontsize=9)
        canvas.colour_bar(scale, left + width + 12, top, min(max(height, 90), 400))
    return canvas.finish()


def _side_by_side(
    title: str, note: str, said: Sequence[str], drawn: Sequence[View | Shift], rows: Sequence[Row]
) -> Drawing:
    """Draw matrices of several layers, above each what is `said` of it; each of the `rows` is below the one before."""
    canvas = Canvas()
    canvas.title(title, note)
    sizes = [_panel(one, values.shape, _LAYER_SIDES) for one, values in zip(drawn, rows[0][1], strict=True)]
    across, down = max(_LEAST_PITCH, *(w + 14 for w, _ in sizes)), max(h for _, h in sizes)
    for place, one in enumerate(drawn):
        line, column = divmod(place, _ABREAST)
        left, top = column * across, line * (len(rows) * (down + 14) + 46)
        canvas.text(left, top - 18, said[place], size=8.5)
        for i, (name, values, scale) in enumerate(rows):
            axes = canvas.axes(left, top + i * (down + 14), *sizes[place])
            canvas.matrix(axes, values[place], scale, one.rows, one.columns)
            lowest = i == len(rows) - 1
            axes.tick_params(labelleft=column == 0, labelbottom=lowest)
            if column == 0:
                axes.set_ylabel(f"{name}\nrow", fontsize=8)
            if lowest:
                axes.set_xlabel("column", fontsize=8, labelpad=-2)
    right = min(len(drawn), _ABREAST) * across
    for i, (_, _, scale) in enumerate(rows):
        canvas.colour_bar(scale, right + 8, i * (down + 14), down)
    return canvas.finish()


def _pair(views: Sequence[View]) -> list[Row]:
    """Both views of some matrices, each view with a scale that all matrices share."""
    kept, around = [v.kept for v in views], [v.neighbours for v in views]
    pooled = any(v.pooled for v in views)
    return [
        ("kept", kept, _continuous(kept, "kept", as_percent=True) if pooled else _KEPT),
        ("kept neighbours", around, _continuous(around, "kept neighbours") if pooled else _COUNT),
    ]


def _sizes(shifts: Sequence[Shift]) -> Row:
    sizes = [shift.sizes for shift in shifts]
    return "size of the shift", sizes, _continuous(sizes, "mean size of the shift")


def _continuous(shown: Iterable[Pooled], label: str, as_percent: bool = False) -> Scale:
    found = np.concatenate([values[values > 0] for values in shown])
    largest = float(found.max()) if found.size else 1.0
    top = float(np.percentile(found, _CLIP)) if found.size else 1.0
    # 0 lies below the scale's start: grey means that nothing is kept, however little the darkest colour stands for
    norm = Normalize(vmin=top * 1e-9, vmax=top)
    return Scale(viridis(), norm, label, extend="both" if largest > top else "min", percent=as_percent)


def _steps(count: int, label: str, tick_labels: tuple[str, ...]) -> Scale:
    norm = BoundaryNorm([i - 0.5 for i in range(count + 2)], count + 1)
    return Scale(viridis_steps(count), norm, label, tuple(range(count + 1)), tick_labels)


_KEPT = _steps(1, "kept", ("no", "yes"))
_COUNT = _steps(4, "kept neighbours", ("0", "1", "2", "3", "4"))


def _panel(drawn: View | Shift, blocks: tuple[int, ...], sides: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels, with a whole number of pixels for each block, if possible in the matrix's proportions.

    The longer side is between the two `sides` if that is possible without leaving blocks out.
    """
    down, across = blocks
    steepness = min(STEEPEST, max(1 / STEEPEST, drawn.rows / drawn.columns))
    choices = []
    for x in range(1, max(1, sides[1] // across) + 1):
        y = max(1, min(round(steepness * x * across / down), max(1, sides[1] // down)))
        choices.append((x * across, y * down))
    large = [size for size in choices if max(size) >= sides[0]] or choices[-1:]
    return min(large, key=lambda size: (round(abs(log(size[1] / size[0] / steepness)), 1), sum(size)))
