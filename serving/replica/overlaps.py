"""How far deltas keep the same positions, as KENviz counts it. Computed beside the engine, one question at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import combinations
from math import prod

from ken_core import DeltaFile
from ken_core.deltafile import read_masks
from ken_core.viz.overlap import Overlap, Packed, overlaps
from serving.errors import OverloadedError
from serving.tiers.files import DeltaFiles

_MOST_WAITING = 4
_RETRY_SECONDS = 10.0
_MOST_PAIRS = 20_000

Shapes = Mapping[str, tuple[int, ...]]
Pair = tuple[str, str]


class Overlaps:
    """Counts the positions that deltas keep together, and remembers what it counted, since a delta never changes.

    Args:
        files: of the deltas.

    Attributes:
        shapes: the shape of every tensor of the base.
    """

    def __init__(self, files: DeltaFiles, shapes: Shapes) -> None:
        self._files = files
        self.shapes = shapes
        self._thread = ThreadPoolExecutor(1, "ken-overlaps")
        self._waiting = 0
        self._known: OrderedDict[Pair, Overlap] = OrderedDict()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def between(self, digests: Sequence[str]) -> dict[Pair, Overlap]:
        """The overlap of every two of these deltas, in the order that they are given. To be called on the event loop.

        Raises:
            OverloadedError: too many wait for such an answer already.
            StoreError, NoRoomError, DeltaFormatError, RefusedDeltaError: a delta cannot be read.
        """
        if self._waiting >= _MOST_WAITING:
            raise OverloadedError(f"{_MOST_WAITING} wait for overlaps already; try again later", _RETRY_SECONDS)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._between, list(digests))
        finally:
            self._waiting -= 1

    # On the thread

    def _between(self, digests: Sequence[str]) -> dict[Pair, Overlap]:
        pairs = list(combinations(digests, 2))
        if any(pair not in self._known for pair in pairs):
            missing = {digest for pair in pairs if pair not in self._known for digest in pair}
            self._count([digest for digest in digests if digest in missing])
        found = {pair: self._known[pair] for pair in pairs}
        for pair in pairs:
            self._known.move_to_end(pair)
        while len(self._known) > _MOST_PAIRS:
            self._known.popitem(last=False)
        return found

    def _count(self, digests: Sequence[str]) -> None:
        with ExitStack() as held:
            files = list[DeltaFile]()
            for digest in digests:
                held.enter_context(self._files.held(digest))
                files.append(self._files.open(digest)[0])
            for (i, j), found in overlaps_of(files, self.shapes).items():
                self._known[digests[i], digests[j]] = found


def overlaps_of(files: Sequence[DeltaFile], shapes: Shapes) -> dict[tuple[int, int], Overlap]:
    """The overlap of every two of several deltas of one base, by their places. One tensor at a time is in memory.

    Raises:
        DeltaFormatError: a file contradicts itself.
    """
    sums = {(i, j): Overlap() for i, j in combinations(range(len(files)), 2)}
    names = [[name for name in shapes if is_kept(file, name, shapes)] for file in files]
    streams = [read_masks(file, own) for file, own in zip(files, names, strict=True)]
    for name, masks in _side_by_side(shapes, names, streams):
        for i, j, found in overlaps(masks, prod(shapes[name])):
            sums[i, j] += found
    return sums


def is_kept(file: DeltaFile, name: str, shapes: Shapes) -> bool:
    """Whether a delta keeps positions of a tensor, which has the shape that the base's has."""
    entry = file.manifest.sparse.get(name)
    return entry is not None and entry.shape == shapes[name]


def _side_by_side(
    shapes: Iterable[str], names: Sequence[Sequence[str]], streams: Sequence[Iterator[Packed]]
) -> Iterator[tuple[str, list[Packed | None]]]:
    """For each tensor the masks of all deltas; None for a delta that keeps nothing of it."""
    wanted = [set(own) for own in names]
    for name in shapes:
        if any(name in own for own in wanted):
            yield (
                name,
                [next(stream) if name in own else None for own, stream in zip(wanted, streams, strict=True)],
            )
