"""The picture of a calibration: bytes against the score of every delta that was judged, and the distance of all."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ken_core.manifest import Calibration, Trial
from ken_core.viz.canvas import OKABE_ITO
from ken_core.writing import new_file

_BLACK = "#1b1b1b"
_GRID = "#d0d0d0"


def draw_calibration(record: Calibration, out: Path) -> None:
    """Write a PNG of two panels over bytes on a logarithmic scale. The file appears whole or not at all.

    Above, the score of the deltas that were judged, each with a bar down to the score that it falls to at worst with
    the record's confidence; the written delta is ringed. Below, how far the answers of each method's deltas to the
    choosing examples are from the fine-tune's.
    """
    figure = Figure(figsize=(8, 7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_scores(above, record)
    _draw_distances(below, record)
    below.set_xscale("log")
    below.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
    below.xaxis.set_minor_formatter(NullFormatter())
    below.set_xlabel("size of the delta file (MB, logarithmic)")
    for axes in (above, below):
        axes.grid(visible=True, which="both", linewidth=0.4, color=_GRID)
        axes.legend(fontsize=8, loc="best")
    with new_file(out) as partial:
        figure.savefig(partial, format="png")


def _draw_scores(axes: Axes, record: Calibration) -> None:
    for trial in record.tried:
        if trial.score is not None:
            worst = trial.score if trial.bound is None else record.score_at(trial.bound)
            _draw_score(axes, trial, trial.score, worst)
    if record.chosen is not None:
        size = record.tried[record.chosen].bytes
        axes.plot(size, record.score, "o", color=_BLACK, markersize=11, fillstyle="none", label="written")
    axes.axhline(record.tuned_score, color=_BLACK, linewidth=1, label="the fine-tune")
    if record.tolerance is not None:
        limit = record.score_at(record.tolerance)
        axes.axhline(limit, color=_BLACK, linewidth=1, linestyle=":", label=f"within {record.tolerance:g} of it")
    axes.set_ylabel(f"{record.metric} on {record.examples:,} examples")
    sure = (
        "" if record.confidence is None else f", and their score at worst, {100 * record.confidence:.4g} % confidence"
    )
    axes.set_title(f"Deltas that were judged{sure}", loc="left", fontsize=10)


def _draw_score(axes: Axes, trial: Trial, score: float, worst: float) -> None:
    axes.plot([trial.bytes] * 2, [worst, score], color=OKABE_ITO[0], linewidth=1, marker="_", markersize=8)
    axes.plot(trial.bytes, score, "o", color=OKABE_ITO[0], markersize=5)


def _draw_distances(axes: Axes, record: Calibration) -> None:
    ways = sorted({(t.method, t.codec) for t in record.tried})
    for (method, codec), colour in zip(ways, OKABE_ITO * len(ways), strict=False):
        drawn = [t for t in record.tried if (t.method, t.codec) == (method, codec) and t.distance is not None]
        sizes, distances = [t.bytes for t in drawn], [t.distance or 0.0 for t in drawn]
        axes.plot(sizes, distances, color=colour, linewidth=1, marker="o", markersize=4, label=f"{method}, {codec}")
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.set_ylabel(f"distance on {record.choosing:,} others")
    axes.set_title("All that were tried: the nearest of each size was judged", loc="left", fontsize=10)
