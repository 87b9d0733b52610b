"""The delta file of at most a given size that keeps the most of a fine-tune."""

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
from ken_core.errors import TooSmallError
from ken_core.extraction import Extraction
from ken_core.progress import Progress, silent
from ken_core.selection import ALLOWED_SCOPES, DECOMPOSING, Budget, Method, Selection
from ken_core.tensor_filter import EVERYTHING, TensorFilter

USUAL_PART = 45
"""Factors usually take this part of the base's bytes, before compression."""
_CLOSE = 0.98
"""A file of this part of the size is not made larger."""
_MOST_TRIES = 8
_MOST_REFINED = 3
_REFINED = "once refined, the delta takes {least:,} bytes, and {asked:,} were asked for; give a larger size"


def usual_bytes(base: Checkpoint) -> int:
    """The budget of factors in bytes where nothing is said."""
    return sum(t.nbytes for t in base.backbone_tensors.values()) // USUAL_PART


def write_within(
    extraction: Extraction,
    base: Checkpoint,
    size: int,
    path: Path,
    codec: Codec = "int4",
    *,
    method: Method = "svd",
    tensors: TensorFilter = EVERYTHING,
    refine: Callable[[Delta], Delta] | None = None,
    progress: Progress = silent,
) -> tuple[Delta, DeltaFile]:
    """Write a delta of at most `size` bytes, head, tokenizer and manifest included.

    How well numbers compress is known only once they are written, so a few budgets are tried.

    Args:
        method: any that takes a budget in bytes or a fraction.
        refine: changes the chosen delta's numbers, such as `ken_core.scales.fit_scales` does. Where they compress so
            much worse that the file is too large, a smaller delta is refined.

    Raises:
        TooSmallError: the parts that every delta needs are larger than that already.
        CheckpointChangedError, DeltaFormatError, OutputError: as `extract` and `deltafile.write`.
    """
    whole = sum(t.nbytes for t in base.backbone_tensors.values())

    def cut(budget: int) -> Delta:
        return extraction.delta(Selection(method, _budget(method, budget, whole), tensors=tensors), codec)

    with TemporaryDirectory() as folder:

        def measured(delta: Delta) -> int:
            return deltafile.write(delta, base, Path(folder) / "tried.ken", codec).size

        smallest = measured(best := cut(0))
        if smallest > size:
            raise TooSmallError(smallest, size)
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
            best = _refined(best, fits.budget, cut, refine, measured, size)
    return best, deltafile.write(best, base, path, codec, progress=progress)


def _refined(
    chosen: Delta,
    budget: int,
    cut: Callable[[int], Delta],
    refine: Callable[[Delta], Delta],
    measured: Callable[[Delta], int],
    size: int,
) -> Delta:
    """The chosen delta or one of a smaller budget, refined, in at most `size` bytes."""
    for _ in range(_MOST_REFINED):
        refined = refine(chosen)
        found = measured(refined)
        if found <= size:
            return refined
        budget = int(_CLOSE * budget * size / found)
        chosen = cut(budget)
    raise TooSmallError(found, size, _REFINED)


def _budget(method: Method, nbytes: int, whole: int) -> Budget:
    if method == DECOMPOSING:
        return Budget(nbytes=nbytes)
    return Budget(ALLOWED_SCOPES[method][0], fraction=min(1.0, nbytes / whole))


@dataclass(frozen=True)
class _Try:
    """The size of the file that came of a budget."""

    budget: int
    size: int


def _next_budget(smallest: int, fits: _Try, exceeds: _Try | None, size: int) -> int:
    """A budget whose file should be a little smaller than `size`: sizes grow nearly evenly with budgets.

    The first elements of a tensor cost more, so that the even estimate may be too large again and again; while nothing
    is known to fit but the smallest file, it is at least halved.
    """
    aim = (1 + _CLOSE) / 2 * size - fits.size
    if exceeds is not None:
        even = aim / (exceeds.size - fits.size)
        return fits.budget + int((exceeds.budget - fits.budget) * (even if fits.budget else min(even, 0.5)))
    return fits.budget + int(max(aim, 1) * fits.budget / max(1, fits.size - smallest))
