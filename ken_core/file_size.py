"""The delta file of at most a given size that keeps the most of a fine-tune, by method `svd`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ken_core import deltafile
from ken_core.checkpoint import Checkpoint
from ken_core.codings import Codec
from ken_core.container import DeltaFile
from ken_core.delta import Delta
from ken_core.errors import SelectionError
from ken_core.extraction import Extraction
from ken_core.progress import Progress, silent
from ken_core.selection import Budget, Selection
from ken_core.tensor_filter import EVERYTHING, TensorFilter

_CLOSE = 0.98
"""A file of this part of the size is not made larger."""
_MOST_TRIES = 6
_MOST_REFINED = 2


def write_within(
    extraction: Extraction,
    base: Checkpoint,
    size: int,
    path: Path,
    codec: Codec = "int4",
    *,
    tensors: TensorFilter = EVERYTHING,
    refine: Callable[[Delta], Delta] | None = None,
    progress: Progress = silent,
) -> tuple[Delta, DeltaFile]:
    """Write a delta of at most `size` bytes, head, tokenizer and manifest included.

    How well numbers compress is known only once they are written, so a few budgets are tried.

    Args:
        refine: changes the chosen delta's numbers, such as `ken_core.distillation.distil` does. Where they compress so
            much worse that the file is too large, a smaller delta is refined.

    Raises:
        SelectionError: the parts that every delta needs are larger than that already; or what `refine` made was too
            large twice.
        CheckpointChangedError, DeltaFormatError, OutputError: as `extract` and `deltafile.write`.
    """

    def cut(budget: int) -> Delta:
        return extraction.delta(Selection("svd", Budget(nbytes=budget), tensors=tensors), codec)

    with TemporaryDirectory() as folder:

        def measured(delta: Delta) -> int:
            return deltafile.write(delta, base, Path(folder) / "tried.ken", codec).size

        smallest = measured(best := cut(0))
        if smallest > size:
            raise SelectionError(
                f"a delta of this fine-tune has at least {smallest:,} bytes (head, vectors, tokenizer, manifest); "
                f"{size:,} were asked for; give a larger size"
            )
        fits, exceeds, budget = _Try(0, smallest), None, size - smallest
        for _ in range(_MOST_TRIES):
            delta = cut(budget)
            tried = _Try(budget, measured(delta))
            if tried.size > size:
                exceeds = tried
            else:
                best, before, fits = delta, fits, tried
                if tried.size >= _CLOSE * size or tried.size == before.size:  # close enough, or nothing more to keep
                    break
            budget = _next_budget(smallest, fits, exceeds, size)
        if refine is not None:
            best = _refined(best, cut, refine, measured, size)
    return best, deltafile.write(best, base, path, codec, progress=progress)


def _refined(
    chosen: Delta,
    cut: Callable[[int], Delta],
    refine: Callable[[Delta], Delta],
    measured: Callable[[Delta], int],
    size: int,
) -> Delta:
    """The chosen delta or a smaller one, refined, in at most `size` bytes."""
    for _ in range(_MOST_REFINED):
        refined = refine(chosen)
        excess = measured(refined) - size
        if excess <= 0:
            return refined
        chosen = cut(max(0, (chosen.selection.budget.nbytes or 0) - 2 * excess))
    raise SelectionError(
        f"once refined, the delta takes {excess:,} bytes more than the {size:,} asked for; give a larger size"
    )


@dataclass(frozen=True)
class _Try:
    """The size of the file that came of a budget."""

    budget: int
    size: int


def _next_budget(smallest: int, fits: _Try, exceeds: _Try | None, size: int) -> int:
    """A budget whose file should be a little smaller than `size`: sizes grow nearly evenly with budgets."""
    aim = (1 + _CLOSE) / 2 * size - fits.size
    if exceeds is not None:
        return fits.budget + int((exceeds.budget - fits.budget) * aim / (exceeds.size - fits.size))
    return fits.budget + int(max(aim, 1) * fits.budget / max(1, fits.size - smallest))
