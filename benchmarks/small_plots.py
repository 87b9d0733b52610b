"""Accuracy lost against bytes: one panel a task with error bars, and one with the mean over tasks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.small_deltas import Summary

_SHOWN = {
    "svd, int4": ("#0072B2", "o"),
    "magnitude, int4, fitted": ("#009E73", "s"),
    "magnitude, int4": ("#E69F00", "^"),
    "magnitude, zstd": ("#777777", "v"),
}
"""Ways that the plot shows, with a colour that everybody can tell from the others (Okabe and Ito), and a marker."""
_COLUMNS = 4
_MOST = 8.0
"""Points; what loses more is drawn at the edge."""


def draw(summary: Summary, tasks: Sequence[str], file: Path) -> None:
    """Write the picture.

    Args:
        summary: means and deviations by task, way and size.
        file: PNG or SVG.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-(len(tasks) + 1) // _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(3.2 * _COLUMNS, 2.6 * rows), sharex=True, sharey=True)
    panels = list(axes.flat)
    for panel, task in zip(panels, [*tasks, None], strict=False):
        for way, (colour, marker) in _SHOWN.items():
            _draw_way(panel, _points(summary, tasks, task, way), colour, marker, way)
        _finish(panel, task or f"mean of {len(tasks)} tasks")
    for panel in panels[len(tasks) + 1 :]:
        panel.set_visible(False)
    panels[0].legend(fontsize=7, frameon=False)
    figure.supxlabel("size of the file, MB", fontsize=9)
    figure.supylabel("points of accuracy lost", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _points(summary: Summary, tasks: Sequence[str], task: str | None, way: str) -> list[tuple[float, float, float]]:
    """Size, points lost and their deviation, for one task, or the mean of those sizes that every task has."""
    if task is not None:
        return sorted((c.nbytes / 1e6, c.lost, c.spread) for (t, w, _), c in summary.items() if (t, w) == (task, way))
    found = []
    for size in sorted({s for _, w, s in summary if w == way}):
        cells = [summary[t, way, size] for t in tasks if (t, way, size) in summary]
        if len(cells) == len(tasks):
            lost = [c.lost for c in cells]
            found.append((size, statistics.mean(lost), statistics.stdev(lost) if len(lost) > 1 else 0.0))
    return found


def _draw_way(panel: Any, points: Sequence[tuple[float, float, float]], colour: str, marker: str, way: str) -> None:
    if points:
        sizes, lost, spread = zip(*points, strict=True)
        shown = [min(value, _MOST) for value in lost]
        panel.errorbar(
            sizes, shown, spread, color=colour, marker=marker, markersize=4, linewidth=1.2, capsize=2, label=way
        )


def _finish(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=9)
    panel.set_xscale("log", base=2)
    panel.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"], fontsize=8)
    panel.set_ylim(-1.5, _MOST)
    panel.axhspan(-0.5, 0.5, color="#000000", alpha=0.08, linewidth=0)
    panel.tick_params(labelsize=8)
