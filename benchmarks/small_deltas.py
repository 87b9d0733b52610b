"""Accuracy against bytes where bytes are few: kept values, kept values fitted to texts, and singular components.

    python -m benchmarks.small_deltas [--quick] [--json FILE] [--plot FILE] [--texts FOLDER] [--models FOLDER]

The models are MiniLM-L6 fine-tuned on up to seven tasks (`benchmarks.fine_tunes`) with three seeds each, trained on
first use: about two hours on 2 cores. Each way to store a fine-tune fills files of 0.25, 0.5, 1, 2, 4 and 8 MB, head
and manifest included, as nearly as it can; where it cannot, the cell is left out. A file is written, read back and
compared with the full fine-tune on test text: points of accuracy lost, and the KL divergence of its answers from the
fine-tune's (nats). `fitted` scales the kept values by 256 of the texts that the task was trained on, without their
labels. Further seeds are measured at 0.5, 1 and 2 MB; ways that serve for comparison alone at 1 MB, with the first.
Fine-tunes are measured side by side, one on each core.
`--quick`: one seed of the news, two sizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.progress import Progress
from rich.table import Table

from benchmarks.answers import Judge
from benchmarks.fine_tunes import Task, more_tasks, tasks, with_fine_tune_options
from benchmarks.report import Row, report, with_shared_options
from benchmarks.small_plots import draw
from ken_core import Budget, DeltaFile, Extraction, Selection, deltafile, open_base, open_tuned
from ken_core.checkpoint import Checkpoint
from ken_core.codings import Codec
from ken_core.errors import SelectionError
from ken_core.file_size import write_within
from ken_core.scales import fit_scales
from ken_core.selection import ALLOWED_SCOPES, Method
from serving.demo.prepare import demo_base

_MB = 1e6
_SIZES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_FEW_SIZES = (0.5, 1.0, 2.0)
"""With further seeds."""
_ONE_SIZE = (1.0,)
"""Of ways that serve for comparison alone."""
_SEEDS = (0, 1, 2)
_CLOSE = 0.03
"""A file of a way that takes fractions is within this part of the size, or the cell is left out."""
_MOST_TRIES = 5
_TITLE = "small deltas of MiniLM-L6 (90.9 MB)"


@dataclass(frozen=True)
class Way:
    """A way to store a fine-tune. `fitted`: to texts, after selection. `often`: measured with every seed."""

    method: Method
    codec: Codec
    fitted: bool = False
    often: bool = True

    @property
    def name(self) -> str:
        return f"{self.method}, {self.codec}" + ", fitted" * self.fitted


WAYS = (
    Way("svd", "int4"),
    Way("svd", "int8", often=False),
    Way("svd", "zstd", often=False),
    Way("magnitude", "int4", fitted=True),
    Way("magnitude", "int4"),
    Way("magnitude", "zstd"),
    Way("magnitude", "sign", fitted=True, often=False),
    Way("magnitude", "sign", often=False),
    Way("magnitude", "int8", often=False),
    Way("ken-shift", "int4", often=False),
    Way("ken", "int4", often=False),
    Way("random", "int4", often=False),
)


@dataclass(frozen=True)
class Measured:
    """One file: the points of accuracy that it loses, and how far its answers are from the fine-tune's."""

    task: str
    seed: int
    way: str
    size: float
    """Asked for, in MB."""
    nbytes: int
    accuracy: float
    lost: float
    kl: float


def measure(base: Checkpoint, task: Task, seed: int, models: Path, sizes: Sequence[float]) -> Iterator[Measured]:
    """Every way and size of one fine-tune."""
    tuned = open_tuned(str(task.fine_tune(seed, models)))
    judge, storing = Judge(tuned, task.test), _Storing(base, tuned, [e.text for e in task.train])
    with TemporaryDirectory() as folder:
        for way in (w for w in WAYS if w.often or seed == _SEEDS[0]):
            fewer = _ONE_SIZE if not way.often else sizes if seed == _SEEDS[0] else _FEW_SIZES
            for size in (s for s in sizes if s in fewer):
                file = storing.file(way, int(size * _MB), Path(folder) / "delta.ken")
                if file is not None:
                    accuracy, lost, kl = judge.of(base, file)
                    yield Measured(task.name, seed, way.name, size, file.size, accuracy, lost, kl)


class _Storing:
    """A fine-tune, written in files of given sizes."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint, texts: Sequence[str]) -> None:
        self._base, self._tuned, self._texts = base, tuned, texts
        self._extraction = Extraction(base, tuned)
        self._fractions: dict[tuple[Method, Codec, int], float | None] = {}

    def file(self, way: Way, size: int, path: Path) -> DeltaFile | None:
        """A file of about `size` bytes; None if there is none."""
        if way.method == "svd":
            try:
                return write_within(self._extraction, self._base, size, path, way.codec)[1]
            except SelectionError:
                return None
        key = way.method, way.codec, size
        if key not in self._fractions:
            self._fractions[key] = self._fraction(way, size, path)
        fraction = self._fractions[key]
        return None if fraction is None else self._written(way, fraction, path, fitted=way.fitted)

    def _fraction(self, way: Way, size: int, path: Path) -> float | None:
        """The fraction to keep that fills `size` bytes; fitting changes the size of a file by little."""
        smallest = self._written(way, 0.0, path).size
        fraction = max(1e-4, (size - smallest) / (100 * _MB))
        for _ in range(_MOST_TRIES if size > smallest else 0):
            written = self._written(way, fraction, path).size
            if abs(written - size) <= _CLOSE * size:
                return fraction
            fraction = min(1.0, fraction * max(0.05, (size - smallest) / max(1, written - smallest)))
        return None

    def _written(self, way: Way, fraction: float, path: Path, *, fitted: bool = False) -> DeltaFile:
        selection = Selection(way.method, Budget(ALLOWED_SCOPES[way.method][0], fraction))
        delta = self._extraction.delta(selection, way.codec)
        if fitted:
            delta = fit_scales(self._base, self._tuned, delta, self._texts)
        return deltafile.write(delta, self._base, path, way.codec)


def _measured_apart(work: tuple[str, int, argparse.Namespace]) -> list[Measured]:
    """The cells of one fine-tune, in a process of its own."""
    name, seed, options = work
    torch.set_num_threads(1)
    task = next(t for t in _tasks(options) if t.name == name)
    return list(measure(open_base(demo_base()), task, seed, options.models, _sizes(options)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture, one panel a task")
    options = with_fine_tune_options(with_shared_options(parser)).parse_args()
    chosen = _tasks(options)
    work = [(t.name, seed, options) for seed in _SEEDS[: 1 if options.quick else None] for t in chosen]
    for name, seed, _ in work:  # training takes all cores
        next(t for t in chosen if t.name == name).fine_tune(seed, options.models)
    found: list[Measured] = []
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool, Progress(transient=True) as bar:
        row = bar.add_task("measuring fine-tunes", total=len(work))
        for cells in pool.map(_measured_apart, work):
            found += cells
            bar.advance(row)
    summary = summed_up(found)
    if options.plot:
        draw(summary, [t.name for t in chosen], options.plot)
    report(_TITLE, list(_rows(summary)), options.json, [_table(t.name, summary) for t in chosen])


def _tasks(options: argparse.Namespace) -> list[Task]:
    found = [*tasks(options.texts), *more_tasks()]
    return [t for t in found if t.name == "news"] if options.quick else found


def _sizes(options: argparse.Namespace) -> Sequence[float]:
    return _SIZES[2:4] if options.quick else _SIZES


@dataclass(frozen=True)
class Cell:
    """A way and a size on one task: means over seeds, and the deviation of what is lost."""

    nbytes: float
    accuracy: float
    lost: float
    spread: float
    kl: float
    seeds: int


Summary = Mapping[tuple[str, str, float], Cell]
"""By task, way and size."""


def summed_up(found: Sequence[Measured]) -> Summary:
    groups: dict[tuple[str, str, float], list[Measured]] = defaultdict(list)
    for one in found:
        groups[one.task, one.way, one.size].append(one)
    return {key: _cell(group) for key, group in groups.items()}


def _cell(group: Sequence[Measured]) -> Cell:
    lost = [one.lost for one in group]
    return Cell(
        nbytes=statistics.mean(one.nbytes for one in group),
        accuracy=statistics.mean(one.accuracy for one in group),
        lost=statistics.mean(lost),
        spread=statistics.stdev(lost) if len(lost) > 1 else 0.0,
        kl=statistics.mean(one.kl for one in group),
        seeds=len(group),
    )


def _rows(summary: Summary) -> Iterator[Row]:
    for (task, way, size), cell in summary.items():
        name = f"{task}, {way}, {size:g} MB"
        yield Row(f"{name}: lost", cell.lost, "points")
        yield Row(f"{name}: deviation of what is lost over {cell.seeds} seeds", cell.spread, "points")
        yield Row(f"{name}: KL divergence", cell.kl, "nats")
        yield Row(f"{name}: bytes", cell.nbytes, "B")


def _table(task: str, summary: Summary) -> Table:
    sizes = sorted({size for _, _, size in summary})
    table = Table(
        "way", *(f"{s:g} MB" for s in sizes), title=f"{task}: points lost ± deviation, KL", title_justify="left"
    )
    for way in WAYS:
        cells = [summary.get((task, way.name, size)) for size in sizes]
        table.add_row(way.name, *("" if c is None else f"{c.lost:+.1f} ± {c.spread:.1f}, {c.kl:.4f}" for c in cells))
    return table


if __name__ == "__main__":
    main()
