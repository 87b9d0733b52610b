"""The picture of a calibration: the score against the bytes of every delta that was tried."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ken_core.manifest import Calibration, Trial
from ken_core.viz.canvas import OKABE_ITO
from ken_core.writing import new_file

_MARKERS = ("o", "s", "^", "D", "v")


def draw_calibration(record: Calibration, out: Path) -> None:
    """Write a PNG: bytes across on a logarithmic scale, the score upwards; colours are codecs, marks are methods.

    Filled marks are deltas within the tolerance. The file appears whole or not at all.
    """
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    methods = sorted({t.method for t in record.tried})
    codecs = list(dict.fromkeys(t.codec for t in record.tried))
    limit = record.tuned_score - record.tolerance
    for codec, colour in zip(codecs, OKABE_ITO, strict=False):
        for method, marker in zip(methods, _MARKERS, strict=False):
            _curve(axes, [t for t in record.tried if (t.codec, t.method) == (codec, method)], colour, marker, limit)
    axes.axhline(record.tuned_score, color="#1b1b1b", linewidth=1, label="the fine-tune")
    axes.axhline(limit, color="#1b1b1b", linewidth=1, linestyle=":", label=f"within {record.tolerance:g} of it")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("size of the delta file (MB, logarithmic)")
    axes.set_ylabel(f"{record.metric} on {record.examples:,} examples")
    axes.set_title("What deltas of each size answer; filled: within the tolerance", loc="left", fontsize=10)
    axes.grid(visible=True, which="both", linewidth=0.4, color="#d0d0d0")
    axes.legend(fontsize=8, loc="lower right")
    with new_file(out) as partial:
        figure.savefig(partial, format="png")


def _curve(axes: Axes, trials: list[Trial], colour: str, marker: str, limit: float) -> None:
    if not trials:
        return
    ordered = sorted(trials, key=lambda t: t.fraction)
    sizes, scores = [t.bytes for t in ordered], [t.score for t in ordered]
    name = f"{trials[0].method}, {trials[0].codec}"
    axes.plot(
        sizes, scores, color=colour, linewidth=1, marker=marker, markersize=5, markerfacecolor="white", label=name
    )
    held = [t for t in ordered if t.score >= limit - 1e-12]
    axes.plot([t.bytes for t in held], [t.score for t in held], marker, color=colour, markersize=5)
