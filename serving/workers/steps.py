"""Work in steps, between which somebody else's work may have its turn, or it may be given up."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Steps: TypeAlias = Generator[int, None, T]
"""Before each of its steps it yields how large that is, in characters or as many numbers; at last it returns a T.

What comes before the first step costs nothing: it is done by whoever puts the work in line.
"""


def finish(steps: Steps[T]) -> T:
    """The result of work of which nothing else needs to have a turn."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # typeshed leaves it open


def together(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Neighbours that are small enough to be one step; a larger one is a step of its own."""
    start, size = 0, 0
    for i, one in enumerate(sizes):
        if i > start and size + one > most:
            yield range(start, i)
            start, size = i, 0
        size += one
    if sizes:
        yield range(start, len(sizes))
