"""What correcting a batch of several tasks costs, by tokens a task, share kept and tasks, next to dense products.

    python -m benchmarks.mixed [--quick] [--json FILE]

Linear layers in the shapes of MiniLM-L6 (384 x 384, 1536 x 384) and BERT-base (768 x 768), float32; random weights,
masks and values. A batch is groups of token rows, each with its own packed delta. All ways of one table take turns, so
that what else the machine does hits them alike; figures are medians.

- **correction**: `Correction.linear`, what is added to the base's result for all groups of the batch
- **transposing**: `Correction.tokens`, once for all layers with the same input
- **dense D**: `torch.mm` by each group's D in full, which takes as much memory as the weights for every task
- **base**: the base's own Linear for all rows of the batch, which is to be paid in any case
- **ns an element**: of the correction, for one kept element and up to 16 tokens
- **limit**: multiplications per second of the correction, against those of a large `torch.mm` in the same turns

`--quick` takes fewer sizes and turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product

import numba
import numpy as np
import torch
from rich.table import Table
from torch.nn import functional

from benchmarks.report import Row, arguments, plain_table, report
from benchmarks.turns import taking_turns
from ken_core.bits import as_bits, pack_mask
from ken_core.kernels import Segment, correction_for, pack
from ken_core.kernels.correction import Correction, Shift, linear_shift
from ken_core.kernels.correction_reference import dense
from serving.engine.cores import usable_cores

_SHAPES = ((384, 384), (1536, 384), (768, 768))
"""Outputs and features."""
_KEPT = (0.02, 0.10, 0.30)
_GROUPS = (1, 4, 16)
_TOKENS = (1, 4, 16, 64, 256)
"""Of each group."""
_VECTOR = 16
_LARGE = 768
"""Rows and columns of the product that tells what the machine can do."""
_DTYPE = torch.float32
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """A batch of groups, each with as many tokens and its own delta of one Linear."""

    shape: tuple[int, int]
    kept: float
    groups: int
    tokens: int

    @property
    def name(self) -> str:
        outputs, features = self.shape
        return f"{outputs} x {features}, {self.kept:.0%} kept, {self.groups} x {self.tokens} tokens"


def main() -> None:
    options = arguments(__doc__)
    threads = usable_cores()
    torch.set_num_threads(threads)
    correction = correction_for(_CPU, _DTYPE)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    turns = 5 if options.quick else 15
    rows: list[Row] = []
    tables = []
    for shape in _SHAPES[:1] if options.quick else _SHAPES:
        sizes = product((shape,), _KEPT, _GROUPS[::2] if options.quick else _GROUPS, _TOKENS)
        found = {batch: _medians(batch, correction, turns) for batch in (Batch(*size) for size in sizes)}
        rows += (row for batch, seconds in found.items() for row in _rows(batch, seconds))
        tables.append(_table(shape, found))
    report(f"Batches that mix tasks: one Linear, {threads} threads", rows, options.json, tables)


def _medians(batch: Batch, correction: Correction, turns: int) -> dict[str, float]:
    """Seconds by way."""
    rng, (outputs, features) = np.random.default_rng(0), batch.shape
    arena = torch.from_numpy(rng.standard_normal(outputs * features, dtype=np.float32))
    weight = arena.view(batch.shape)
    shifts = [_random_shift(rng, batch) for _ in range(batch.groups)]
    shifts_in_full = [dense(s, arena).T for s in shifts]
    slices = [slice(n * batch.tokens, (n + 1) * batch.tokens) for n in range(batch.groups)]
    x = torch.from_numpy(rng.standard_normal((batch.groups * batch.tokens, features), dtype=np.float32))
    out = torch.zeros(x.shape[0], outputs)
    groups = correction.groups(slices)
    tokens = correction.tokens(x, groups)
    large = torch.from_numpy(rng.standard_normal((_LARGE, _LARGE), dtype=np.float32))

    def multiply_dense() -> None:
        for rows, shift in zip(slices, shifts_in_full, strict=True):
            torch.mm(x[rows], shift)

    ways: dict[str, Callable[[], object]] = {
        "correction": partial(correction.linear, out, tokens, arena, shifts),
        "transposing": partial(correction.tokens, x, groups),
        "dense D": multiply_dense,
        "base": partial(functional.linear, x, weight),
        "large": partial(torch.mm, large, large),
    }
    return taking_turns(ways, turns)


def _random_shift(rng: np.random.Generator, batch: Batch) -> Shift:
    """A delta of the layer that keeps a random share of it."""
    size = batch.shape[0] * batch.shape[1]
    mask = rng.random(size, dtype=np.float32) < batch.kept
    values = as_bits(torch.from_numpy(rng.standard_normal(int(mask.sum()), dtype=np.float32)))
    shift = linear_shift(pack([Segment(0, pack_mask(mask), values)], _DTYPE, _CPU), 0, batch.shape)
    assert shift is not None
    return shift


def _elements(batch: Batch) -> float:
    """Kept elements of all groups."""
    return batch.kept * batch.shape[0] * batch.shape[1] * batch.groups


def _nanoseconds(batch: Batch, seconds: Mapping[str, float]) -> float:
    return seconds["correction"] * 1e9 / (_elements(batch) * max(1.0, batch.tokens / _VECTOR))


def _limit(batch: Batch, seconds: Mapping[str, float]) -> float:
    reached = _elements(batch) * batch.tokens / seconds["correction"]
    return reached / (_LARGE**3 / seconds["large"])


def _rows(batch: Batch, seconds: Mapping[str, float]) -> Iterator[Row]:
    for way in ("correction", "transposing", "dense D", "base"):
        yield Row(f"{batch.name}: {way}", seconds[way] * 1e6, "us")
    yield Row(f"{batch.name}: an element", _nanoseconds(batch, seconds), "ns")
    yield Row(f"{batch.name}: correction, against the limit", _limit(batch, seconds), "ratio", "large torch.mm")
    for against in ("base", "dense D"):
        ratio = seconds["correction"] / seconds[against]
        yield Row(f"{batch.name}: correction, against {against}", ratio, "ratio", f"{batch.name}: {against}")


def _table(shape: tuple[int, int], found: Mapping[Batch, Mapping[str, float]]) -> Table:
    ways = ("correction", "transposing", "dense D", "base")
    columns = ["kept", "groups", "tokens", *ways, "ns an element", "limit", "/ base", "/ dense D"]
    table = plain_table(f"Linear {shape[0]} x {shape[1]}: us", columns)
    for batch, seconds in found.items():
        table.add_row(
            f"{batch.kept:.0%}",
            str(batch.groups),
            str(batch.tokens),
            *(f"{seconds[way] * 1e6:,.0f}" for way in ways),
            f"{_nanoseconds(batch, seconds):.2f}",
            f"{_limit(batch, seconds):.0%}",
            f"{seconds['correction'] / seconds['base']:.2f}",
            f"{seconds['correction'] / seconds['dense D']:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
