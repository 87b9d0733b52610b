"""Pictures of the overlap of deltas: lines by layer for pairs, a heat map for all pairs, each beside chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

from ken_core.viz.canvas import OKABE_ITO, Canvas, Drawing, Scale, label_ticks, plain, viridis
from ken_core.viz.overlap import Overlap
from ken_core.viz.report import Pair

Values = npt.NDArray[np.float64]

_MOST_LINES = len(OKABE_ITO)
_MARKERS = "osD^vP"
_BY_CHANCE, _CHANCE_INK = "by chance", "#4d4d4d"


def draw_layer_overlaps(title: str, note: str, pairs: Sequence[Pair]) -> Drawing:
    """Draw the Jaccard index of the kept positions by layer: a line for each pair; mean and range of many pairs."""
    canvas = Canvas()
    canvas.title(title, note, free=10)
    layers = list(dict.fromkeys(layer for pair in pairs for layer in pair.layers))
    layers.sort(key=lambda layer: -1 if layer is None else layer)
    overlaps = [[pair.layers.get(layer, Overlap()) for layer in layers] for pair in pairs]
    found = np.array([[one.jaccard for one in row] for row in overlaps])
    chance = np.array([[one.jaccard_by_chance for one in row] for row in overlaps])
    start = layers.count(None)  # tensors of no layer are a separate point before the lines
    axes = canvas.axes(0, 0, max(420, min(900, 60 * (len(layers) + 1))), 340)
    shown: list[tuple[Artist, str]] = []
    if len(pairs) <= _MOST_LINES:
        for colour, marker, pair, values, expected in zip(OKABE_ITO, _MARKERS, pairs, found, chance, strict=False):
            _chance(axes, expected, start, colour)
            line = _line(axes, values, start, colour, marker)
            shown.append((line, f"{plain(pair.first)} and {plain(pair.second)}"))
    else:
        shown.append((_range(axes, found, start), "range of pairs"))
        _chance(axes, _mean(chance), start, OKABE_ITO[0])
        shown.append((_line(axes, _mean(found), start, OKABE_ITO[0], "o"), f"mean of {len(pairs)} pairs"))
    shown.append((Line2D([], [], linestyle=":", color=_CHANCE_INK), f"the same, {_BY_CHANCE}"))
    _label(axes, layers)
    _legend(axes, shown)
    return canvas.finish()


def draw_overlap_matrix(title: str, note: str, labels: Sequence[str], pairs: Sequence[Pair]) -> Drawing:
    """Draw the Jaccard index of the kept positions of every two deltas, and that by chance, in one scale."""
    canvas = Canvas()
    canvas.title(title, note)
    found, chance = (np.full((len(labels), len(labels)), np.nan) for _ in range(2))
    for pair in pairs:
        i, j = labels.index(pair.first), labels.index(pair.second)
        found[i, j] = found[j, i] = pair.overall.jaccard
        chance[i, j] = chance[j, i] = pair.overall.jaccard_by_chance
    top = float(np.nanmax([found, chance], initial=1e-9))
    scale = Scale(viridis(), Normalize(vmin=0, vmax=top), "Jaccard index of the kept positions")
    side = len(labels) * max(26, min(60, 300 // len(labels)))
    for i, (name, values) in enumerate((("found", found), (_BY_CHANCE, chance))):
        left = i * (side + 30)
        canvas.text(left, -20, name, size=10)
        axes = canvas.axes(left, 0, side, side)
        _square(axes, values, scale)
        ticks = range(len(labels))
        label_ticks(axes, "x", ticks, labels, rotation=45, ha="right", va="top")
        label_ticks(axes, "y", ticks, labels if i == 0 else [""] * len(labels))
        axes.set_xlabel("delta", fontsize=9)
        if i == 0:
            axes.set_ylabel("delta", fontsize=9)
    canvas.colour_bar(scale, 2 * side + 45, 0, max(120, min(side, 300)))
    return canvas.finish()


def _line(axes: Axes, values: Values, start: int, colour: str, marker: str) -> Line2D:
    places = np.arange(values.size)
    axes.plot(places[:start], values[:start], color=colour, marker=marker, markersize=5, linestyle="none")
    (line,) = axes.plot(places[start:], values[start:], color=colour, marker=marker, markersize=5)
    return line


def _chance(axes: Axes, values: Values, start: int, colour: str) -> None:
    places = np.arange(values.size)
    axes.plot(places[start:], values[start:], ":", color=colour, linewidth=1.6)
    axes.hlines(
        values[:start], places[:start] - 0.3, places[:start] + 0.3, colors=colour, linestyles=":", linewidth=1.6
    )


def _range(axes: Axes, values: Values, start: int) -> Artist:
    known, places = np.ma.masked_invalid(values), np.arange(values.shape[1])
    low, high = known.min(axis=0).filled(np.nan), known.max(axis=0).filled(np.nan)
    axes.vlines(places[:start], low[:start], high[:start], color=OKABE_ITO[0], alpha=0.4, linewidth=4)
    return axes.fill_between(places[start:], low[start:], high[start:], color=OKABE_ITO[0], alpha=0.2)


def _mean(values: Values) -> Values:
    """The mean over the pairs that keep anything; NaN where no pair does."""
    mean: Values = np.ma.masked_invalid(values).mean(axis=0).filled(np.nan)
    return mean


def _label(axes: Axes, layers: Sequence[int | None]) -> None:
    every = max(1, len(layers) // 24)
    shown = [i for i, layer in enumerate(layers) if layer is None or layer % every == 0]
    label_ticks(axes, "x", shown, ["no layer" if layers[i] is None else str(layers[i]) for i in shown])
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("Jaccard index of the kept positions", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.1)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(axes: Axes, shown: Sequence[tuple[Artist, str]]) -> None:
    legend = axes.legend(
        [artist for artist, _ in shown],
        [name for _, name in shown],
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        fontsize=8.5,
        frameon=False,
        borderaxespad=0,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _square(axes: Axes, values: Values, scale: Scale) -> None:
    painted = np.where(np.isnan(values)[..., None], 255, scale.paint(np.nan_to_num(values)))
    axes.imshow(painted.astype(np.uint8), interpolation="nearest", aspect="auto")
    axes.tick_params(length=0)
    small = values.shape[0] > 8
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        colour = "#000000" if scale.norm(value) > 0.55 else "#ffffff"
        text = f"{value:.2f}".removeprefix("0") if small else f"{value:.3f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5 if small else 8.5, color=colour)
