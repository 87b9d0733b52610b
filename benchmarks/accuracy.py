"""Accuracy against bytes: every method, codec and budget, with and without embeddings, next to other ways to store
fine-tunes in as many bytes.

    python -m benchmarks.accuracy [--quick] [--json FILE] [--texts FOLDER] [--models FOLDER]

The models are MiniLM-L6 fine-tuned on TREC, rotten tomatoes and the demonstration's news, with three seeds each
(trained on first use: about an hour on 2 cores). Accuracy is that on the test text, mean and standard deviation over
seeds. The other ways are:

- LoRA: the shift of every matrix as a truncated SVD, factors in float16, the rank as large as the bytes of the
  `magnitude` delta allow; biases and norms are kept in full;
- BitDelta without its distillation: one sign bit for every weight and one scale for every matrix; biases and norms are
  kept in full;
- magnitude pruning to zero: the largest fine-tuned weights are kept, all others are 0.

The last table is the size for which the design sets a bar: from a ladder of budgets, the smallest delta whose mean
accuracy on the dev text is within half a point of the fine-tunes', and what it loses on the test text. Fine-tunes are
measured side by side, one on each core. `--quick`: one seed of the news, one budget, 50 texts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from rich.table import Table

from benchmarks.fine_tunes import Task, tasks, with_fine_tune_options
from benchmarks.report import Row, report, with_shared_options
from ken_core import Budget, Delta, ResidentModel, Selection, deltafile, extract, graft, open_base, open_tuned
from ken_core.bits import as_bits
from ken_core.blocks import rows_of
from ken_core.checkpoint import Checkpoint
from ken_core.codings import Codec
from ken_core.compression import compress
from ken_core.entries import Sparse
from ken_core.evaluate import classify, label_ids
from ken_core.examples import Example
from ken_core.selection import Method, Scope, select
from ken_core.tensor_filter import EVERYTHING, PRESETS, TensorFilter
from ken_core.tokenization import Encoder
from serving.demo.prepare import demo_base

_SEEDS = (0, 1, 2)
_FRACTIONS = (0.05, 0.10, 0.25, 0.50)
_LADDER = (0.05, 0.10, 0.15, 0.20, 0.25, 0.35, 0.50)
"""Fractions kept by the default method, among which the smallest delta is looked for."""
_BAR = 0.005
_SIZED = ("trec", "rotten_tomatoes")
"""Tasks for which the smallest delta is looked for."""
_FULL = "fine-tune, in full"
_MINUS_EMBEDDINGS = PRESETS["no-embeddings"]

Way = tuple[Method, Scope, TensorFilter, tuple[Codec, ...]]
_WAYS: tuple[Way, ...] = (
    ("ken", "row", EVERYTHING, ("zstd", "int4")),
    ("ken-grid", "row", EVERYTHING, ("zstd",)),
    ("random", "row", EVERYTHING, ("zstd",)),
    ("ken-shift", "row", EVERYTHING, ("zstd",)),
    ("magnitude", "row", EVERYTHING, ("zstd",)),
    ("ken", "row", _MINUS_EMBEDDINGS, ("zstd",)),
    ("ken-shift", "row", _MINUS_EMBEDDINGS, ("zstd",)),
    ("magnitude", "row", _MINUS_EMBEDDINGS, ("zstd",)),
    ("magnitude", "global", _MINUS_EMBEDDINGS, ("zstd", "int4")),
)


@dataclass(frozen=True)
class Measured:
    """One way to store one fine-tune: bytes, accuracy on the test text, and the loss there (and on the dev text)."""

    task: str
    name: str
    bytes: int
    accuracy: float
    lost: float
    lost_on_dev: float | None = None


class Model:
    """One fine-tune, of which deltas and other stored forms are made and measured."""

    def __init__(self, task: Task, seed: int, base: Checkpoint, resident: ResidentModel, models: Path, few: int | None):
        self.task, self.base, self.resident = task, base, resident
        self.tuned = open_tuned(str(task.fine_tune(seed, models)))
        self.encoder = Encoder(self.tuned, self.tuned.config, {})
        self.test, self.dev = task.test[:few], task.dev[:few]

    @cached_property
    def full(self) -> float:
        return self.score_of(self.tuned.model, self.test)

    @cached_property
    def full_on_dev(self) -> float:
        return self.score_of(self.tuned.model, self.dev)

    def score_of(self, model: torch.nn.Module, examples: list[Example]) -> float:
        answers = classify(model, self.encoder, [e.text for e in examples])  # type: ignore[arg-type]
        return float((answers == label_ids(self.tuned.model, examples)).mean())

    def delta(self, method: Method, scope: Scope, fraction: float, tensors: TensorFilter = EVERYTHING) -> Delta:
        if method == "ken-grid":
            return self._grid(fraction, tensors)
        selection = Selection(method, Budget(scope, fraction), tensors=tensors)
        return extract(self.base, self.tuned, selection)

    def _grid(self, fraction: float, tensors: TensorFilter) -> Delta:
        """A delta by `ken-grid`, which takes k: the same fraction of every row's length."""
        shell = self.delta("random", "row", 0.0, tensors)
        ours, theirs = self.base.backbone_tensors, self.tuned.backbone_tensors
        by_width = defaultdict(list)
        for name in (n for n in ours if tensors.covers(n)):
            by_width[rows_of(ours[name]).shape[1]].append(name)
        entries = {}
        for width, names in by_width.items():
            grid = Selection("ken-grid", Budget("row", k=round(fraction * width)))
            for name, mask in select(names, lambda n: (ours[n], theirs[n]), grid):
                bits = as_bits(theirs[name])
                stored = mask & (bits != as_bits(ours[name]))
                packed = np.packbits(stored, bitorder="little")
                entries[name] = Sparse(tuple(ours[name].shape), ours[name].dtype, int(mask.sum()), packed, bits[stored])
        return Delta(**{**shell.__dict__, "sparse": {n: e for n, e in entries.items() if e.values.size}})

    def measure(self, name: str, delta: Delta, codec: Codec, folder: Path, *, also_dev: bool = False) -> Measured:
        file = deltafile.write(delta, self.base, folder / "delta", codec)
        accuracy = self._through_the_file(file, self.test)
        on_dev = self.full_on_dev - self._through_the_file(file, self.dev) if also_dev else None
        return Measured(self.task.name, name, file.size, accuracy, self.full - accuracy, on_dev)

    def _through_the_file(self, file: deltafile.DeltaFile, examples: list[Example]) -> float:
        delta = deltafile.read(file, self.base, self.resident.fingerprint.digest)
        attached = self.resident.attach(delta)
        self.resident.activate(attached)
        score = self.score_of(graft(self.resident.backbone, delta.architecture, delta.config, attached.head), examples)
        self.resident.revert()
        return score

    def with_weights(self, name: str, weights: Mapping[str, torch.Tensor], nbytes: int) -> Measured:
        """Measure the fine-tune with other backbone weights in place of its own; `nbytes` is what they would take."""
        parameters = dict(self.tuned.backbone.named_parameters())
        own = {n: parameters[n].data for n in weights}
        for n, tensor in weights.items():
            parameters[n].data = tensor
        accuracy = self.score_of(self.tuned.model, self.test)
        for n, tensor in own.items():
            parameters[n].data = tensor
        head = sum(t.nbytes for t in self.tuned.head_tensors.values())
        return Measured(self.task.name, name, nbytes + head, accuracy, self.full - accuracy)

    def shifts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and shift of every tensor."""
        for name, ours in self.base.backbone_tensors.items():
            yield name, self.tuned.backbone_tensors[name] - ours


def main() -> None:
    parser = with_shared_options(argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None))
    options = with_fine_tune_options(parser).parse_args()
    chosen = tasks(options.texts)[-1:] if options.quick else tasks(options.texts)
    seeds = _SEEDS[:1] if options.quick else _SEEDS
    for task in chosen:
        for seed in seeds:
            task.fine_tune(seed, options.models)
    found: list[Measured] = []
    jobs = [(task.name, seed, options) for seed in seeds for task in chosen]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool, Progress() as bar:
        row = bar.add_task("fine-tunes measured", total=len(jobs))
        for measured in pool.map(_measure_one, jobs):
            found += measured
            bar.advance(row)
    means = _means(found)
    sizes = [row for task in chosen if task.name in _SIZED for row in _size_bar(task.name, found)]
    rows = [*(row for mean in means for row in mean.rows()), *sizes]
    report("accuracy against bytes, MiniLM-L6, mean over seeds", rows, options.json, list(_tables(means, sizes)))


def _measure_one(job: tuple[str, int, argparse.Namespace]) -> list[Measured]:
    """All ways of storing one fine-tune, on one core."""
    name, seed, options = job
    torch.set_num_threads(1)
    task = next(t for t in tasks(options.texts) if t.name == name)
    base, resident = open_base(demo_base()), ResidentModel(open_base(demo_base()))
    model = Model(task, seed, base, resident, options.models, 50 if options.quick else None)
    with tempfile.TemporaryDirectory() as folder:
        fractions, ladder = ((0.10,), (0.10,)) if options.quick else (_FRACTIONS, _LADDER)
        return [
            Measured(task.name, _FULL, sum(t.nbytes for t in model.tuned.model.state_dict().values()), model.full, 0.0),
            *(m for fraction in fractions for m in _one_budget(model, fraction, Path(folder))),
            *_ladder(model, ladder, Path(folder)),
            _bit_delta(model),
        ]


def _one_budget(model: Model, fraction: float, folder: Path) -> Iterator[Measured]:
    for method, scope, tensors, codecs in _WAYS:
        delta = model.delta(method, scope, fraction, tensors)
        for codec in codecs:
            measured = model.measure(_name(method, scope, tensors, codec, fraction), delta, codec, folder)
            yield measured
        if (method, scope) == ("magnitude", "row"):
            yield _as_lora(model, measured.bytes, tensors, fraction)
    yield _to_zero(model, fraction)


def _ladder(model: Model, ladder: tuple[float, ...], folder: Path) -> Iterator[Measured]:
    """The default method at many budgets, in every codec."""
    for fraction in ladder:
        delta = model.delta("magnitude", "global", fraction)
        for codec in ("zstd", "int8", "int4", "sign"):
            name = _name("magnitude", "global", EVERYTHING, codec, fraction)
            yield model.measure(name, delta, codec, folder, also_dev=codec != "int8" and model.task.name in _SIZED)


def _name(method: str, scope: str, tensors: TensorFilter, codec: str, fraction: float) -> str:
    which = "all" if tensors == EVERYTHING else "no embeddings"
    return f"{method}, {scope}, {which}, {codec}, {fraction:.0%}"


def _as_lora(model: Model, budget: int, tensors: TensorFilter, fraction: float) -> Measured:
    """Low-rank factors of the whole shift, with as large a rank as fits into `budget` bytes."""
    shifts = dict(model.shifts())
    matrices = {n: s for n, s in shifts.items() if s.ndim == 2 and tensors.covers(n)}
    small = {n: s for n, s in shifts.items() if s.ndim == 1}
    fixed = sum(t.nbytes for t in (*small.values(), *model.tuned.head_tensors.values()))
    a_rank = 2 * sum(sum(s.shape) for s in matrices.values())
    rank = max(0, (budget - fixed) // a_rank)
    weights = {n: ours + small[n] if n in small else ours for n, ours in model.base.backbone_tensors.items()}
    for n, shift in matrices.items():
        weights[n] = weights[n] + _truncated(shift, rank)
    which = "all" if tensors == EVERYTHING else "no embeddings"
    nbytes = rank * a_rank + sum(t.nbytes for t in small.values())
    return model.with_weights(f"LoRA of the shift, {which}, bytes of {fraction:.0%}", weights, nbytes)


def _truncated(shift: torch.Tensor, rank: int) -> torch.Tensor:
    """The approximation of a shift by float16 factors of rank `rank`, by a thin SVD of the smaller Gram matrix."""
    rank = min(rank, *shift.shape)
    wide = shift.double()
    flip = wide.shape[0] > wide.shape[1]
    gram = wide.T @ wide if flip else wide @ wide.T
    _, vectors = torch.linalg.eigh(gram)
    leading = vectors[:, -rank:] if rank else vectors[:, :0]
    if flip:
        return ((wide @ leading).half().double() @ leading.half().double().T).float()
    return (leading.half().double() @ (leading.T @ wide).half().double()).float()


def _bit_delta(model: Model) -> Measured:
    weights, nbytes = {}, 0
    for name, shift in model.shifts():
        ours = model.base.backbone_tensors[name]
        if shift.ndim == 1:
            weights[name], nbytes = ours + shift, nbytes + shift.nbytes
        else:
            weights[name] = ours + shift.sign() * shift.abs().mean()
            nbytes += compress(np.packbits((shift < 0).numpy())).size + 4
    return model.with_weights("BitDelta, one bit a weight", weights, nbytes)


def _to_zero(model: Model, fraction: float) -> Measured:
    """Classic pruning of the fine-tune: restoring it needs no base, and every kept weight is stored."""
    tensors = {n: t for n, t in model.tuned.backbone_tensors.items() if t.ndim == 2}
    sizes = torch.cat([t.abs().reshape(-1) for t in tensors.values()])
    cut = sizes.kthvalue(max(1, round((1 - fraction) * sizes.numel()))).values
    weights, nbytes = {}, sum(t.nbytes for t in model.tuned.backbone_tensors.values() if t.ndim == 1)
    for name, tensor in tensors.items():
        kept = tensor.abs() > cut
        weights[name] = tensor * kept
        values = as_bits(tensor[kept])
        planes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)
        nbytes += compress(np.packbits(kept.numpy())).size + compress(planes).size
    return model.with_weights(f"magnitude pruning to zero, {fraction:.0%}", weights, nbytes)


@dataclass(frozen=True)
class Mean:
    """One way to store the fine-tunes of one task: means over seeds, and standard deviations."""

    task: str
    name: str
    bytes: float
    accuracy: float
    deviation: float
    lost: float
    deviation_of_lost: float

    def rows(self) -> Iterator[Row]:
        what = f"{self.task}: {self.name}"
        yield Row(f"{what}: accuracy", self.accuracy, "accuracy")
        yield Row(f"{what}: deviation of accuracy", self.deviation, "accuracy")
        yield Row(f"{what}: lost", 100 * self.lost, "points", "fine-tune")
        yield Row(f"{what}: deviation of lost", 100 * self.deviation_of_lost, "points")
        yield Row(f"{what}: bytes", self.bytes, "B")


def _means(found: list[Measured]) -> list[Mean]:
    same = defaultdict(list)
    for m in found:
        same[m.task, m.name].append(m)
    return [
        Mean(
            task,
            name,
            statistics.mean(m.bytes for m in each),
            statistics.mean(m.accuracy for m in each),
            _deviation([m.accuracy for m in each]),
            statistics.mean(m.lost for m in each),
            _deviation([m.lost for m in each]),
        )
        for (task, name), each in same.items()
    ]


def _tables(means: list[Mean], sizes: list[Row]) -> Iterator[Table]:
    """One table for each task, from the smallest stored form to the largest; then the table of sizes."""
    for task in dict.fromkeys(m.task for m in means):
        table = Table("method, scope, tensors, codec, kept", title=task, title_justify="left")
        for column in ("MB", "accuracy", "lost, points"):
            table.add_column(column, justify="right")
        for m in sorted((m for m in means if m.task == task), key=lambda m: m.bytes):
            lost = f"{100 * m.lost:.1f} ± {100 * m.deviation_of_lost:.1f}"
            table.add_row(m.name, f"{m.bytes / 1e6:.2f}", f"{m.accuracy:.3f} ± {m.deviation:.3f}", lost)
        yield table
    if not sizes:
        return
    table = Table("smallest within half a point on dev", title="size", title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for row in sizes:
        table.add_row(row.name, f"{row.value:.2f}", row.unit)
    yield table


def _size_bar(task: str, found: list[Measured]) -> Iterator[Row]:
    """The smallest delta of the ladder that loses at most half a point on the dev text, in the mean over seeds."""
    by_name = defaultdict(list)
    for m in found:
        if m.task == task and m.lost_on_dev is not None:
            by_name[m.name].append(m)
    whole = next(m.bytes for m in found if m.task == task and m.name == _FULL)
    for kind, codecs in (("lossless", ("zstd",)), ("lossy", ("int4", "sign"))):
        means = [
            (statistics.mean(m.bytes for m in same), name, statistics.mean(m.lost_on_dev or 0.0 for m in same), same)
            for name, same in by_name.items()
            if any(f", {codec}, " in name for codec in codecs)
        ]
        held = sorted((m for m in means if m[2] <= _BAR + 1e-12), key=lambda m: m[0])
        if not held:
            yield Row(f"{task}: {kind}, within half a point on dev: none of the ladder", 0, "1")
            continue
        nbytes, name, lost_on_dev, same = held[0]
        chosen = f"{task}: {kind}, within half a point on dev: {name}"
        yield Row(f"{chosen}: one byte in", whole / nbytes, "ratio", "fine-tune")
        yield Row(f"{chosen}: lost on dev", 100 * lost_on_dev, "points", "fine-tune")
        yield Row(f"{chosen}: lost on test", 100 * statistics.mean(m.lost for m in same), "points", "fine-tune")


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
