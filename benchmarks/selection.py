"""Seconds to select from every tensor of a BERT-base, by method, next to a plain scikit-learn KernelDensity loop.

    python -m benchmarks.selection [--quick] [--json FILE]

The base is random weights in BERT-base's shapes (110 M, float32), the fine-tune differs by a small shift; both are
written to safetensors files and read from the mapped files. scikit-learn runs on a few rows of each width, from which
its time for all rows is extrapolated. The shares of reading, scoring and ranking come from runs that stop after each of
these steps. `--quick` takes 2 of the 12 layers and 6,000 of the 30,522 word vectors.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from sklearn.neighbors import KernelDensity
from transformers import BertConfig, BertModel
from transformers.utils import logging

from benchmarks.report import Row, arguments, report
from ken_core import Budget, Checkpoint, Selection, deltafile, extract, open_base, open_tuned, select
from ken_core.blocks import blocks_of, rows_of, widen, workers
from ken_core.density import bandwidths
from ken_core.scores import likely_value
from ken_core.selection import Pair

Pairs = dict[str, Pair]

_SELECTIONS = {
    "ken": Selection("ken", Budget("row", 0.25)),
    "ken-shift": Selection("ken-shift", Budget("row", 0.25)),
    "ken-grid, k = 100": Selection("ken-grid", Budget("row", k=100)),
    "magnitude, per row": Selection("magnitude", Budget("row", 0.10)),
    "magnitude, global": Selection("magnitude", Budget("global", 0.10)),
    "random, global": Selection("random", Budget("global", 0.10)),
}


def main() -> None:
    options = arguments(__doc__)
    repeats, sampled = (1, 2) if options.quick else (3, 12)
    with tempfile.TemporaryDirectory() as folder:
        base, tuned = _pair(Path(folder), small=options.quick)
        pairs = {n: (t, tuned.backbone_tensors[n]) for n, t in base.backbone_tensors.items()}
        count = sum(b.numel() for b, _ in pairs.values())
        rows = [Row("elements", count, "1")]
        rows += _selections(pairs, repeats)
        rows += _shares(pairs, rows)
        rows += _scikit_learn(pairs, sampled, rows)
        rows += _whole_command(base, tuned, Path(folder))
    threads = torch.get_num_threads()
    report(f"selection from a BERT-base-shaped pair, float32, {threads} threads", rows, options.json)


def _pair(folder: Path, *, small: bool) -> tuple[Checkpoint, Checkpoint]:
    config = BertConfig(num_hidden_layers=2, vocab_size=6000) if small else BertConfig()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = BertModel(config)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.002 * torch.randn_like(parameter)
    model.save_pretrained(folder / "tuned")
    return open_base(str(folder / "base")), open_tuned(str(folder / "tuned"))


def _selections(pairs: Pairs, repeats: int) -> Iterator[Row]:
    for name, selection in _SELECTIONS.items():

        def run(names: list[str], selection: Selection = selection) -> None:
            for _ in select(names, pairs.__getitem__, selection):
                pass

        run(["encoder.layer.0.output.dense.bias"])  # so that compiling is not timed
        few = 1 if selection.method == "ken-grid" else repeats
        yield Row(name, _median(partial(run, list(pairs)), few), "s")


def _shares(pairs: Pairs, rows: list[Row]) -> Iterator[Row]:
    """The shares of `ken`'s time that are reading blocks, scoring them, and the rest, which is ranking."""

    def over_blocks(work: Callable[[torch.Tensor, torch.Tensor, slice], object]) -> None:
        with workers() as in_order:
            for pair in pairs.values():
                for _ in in_order(partial(work, *pair), blocks_of(pair[0])):
                    pass

    def read(base: torch.Tensor, tuned: torch.Tensor, rows: slice) -> None:
        widen(base, rows).max()
        widen(tuned, rows).max()

    def score(base: torch.Tensor, tuned: torch.Tensor, rows: slice) -> None:
        likely_value(widen(base, rows), widen(tuned, rows))

    total = next(r.value for r in rows if r.name == "ken")
    reading, scoring = (_median(partial(over_blocks, work), 3) for work in (read, score))
    yield Row("ken: share of reading", reading / total, "ratio", "ken")
    yield Row("ken: share of density", max(0.0, scoring - reading) / total, "ratio", "ken")
    yield Row("ken: share of ranking", max(0.0, total - scoring) / total, "ratio", "ken")


def _scikit_learn(pairs: Pairs, sampled: int, rows: list[Row]) -> Iterator[Row]:
    """A plain loop over rows. Rows of the same width take the same time, so a few rows of each width are timed."""
    widths = Counter[int]()
    examples: dict[int, torch.Tensor] = {}
    for _, tuned in pairs.values():
        seen = rows_of(tuned)
        widths[seen.shape[1]] += seen.shape[0]
        if seen.shape[0] >= examples.get(seen.shape[1], torch.empty(0)).shape[0]:
            examples[seen.shape[1]] = seen
    total = 0.0
    for width, number in widths.items():
        some = examples[width][:sampled].double().numpy()
        began = time.perf_counter()
        for row, h in zip(some, bandwidths(some), strict=True):
            KernelDensity(bandwidth=h).fit(row[:, None]).score_samples(row[:, None])
        total += (time.perf_counter() - began) / len(some) * number
    yield Row(f"scikit-learn loop, extrapolated from {sampled} rows a width", total, "s")
    for name in ("ken", "ken-shift"):
        own = next(r.value for r in rows if r.name == name)
        yield Row(f"{name}: times faster", total / own, "ratio", "scikit-learn loop")


def _whole_command(base: Checkpoint, tuned: Checkpoint, folder: Path) -> Iterator[Row]:
    """The work of `ken extract` with its defaults, once both checkpoints are open: from comparing to writing the file.

    It compares and selects, hashes the base, encodes and writes.
    """
    began = time.perf_counter()
    delta = extract(base, tuned)
    extracted = time.perf_counter()
    file = deltafile.write(delta, base, folder / "delta.ken")
    yield Row("extract, magnitude global 10 %", extracted - began, "s")
    yield Row("encode and write it, zstd", time.perf_counter() - extracted, "s")
    yield Row("its bytes", file.size, "B")


def _median(work: Callable[[], None], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
