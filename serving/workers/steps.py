"""Work that is divided into steps. Between two steps, other work may run, or the work may be given up."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Steps: TypeAlias = Generator[int, None, T]
"""A generator that yields the size of each step before the step, in characters or numbers, and returns a T at the end.

The code before the first ``yield`` must be cheap: the caller that queues the work runs it.
"""


def finish(steps: Steps[T]) -> T:
    """Run all steps at once and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # typeshed leaves it open


def together(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Group neighbouring items into steps of at most `most` in size. An item larger than that is a step of its own.

    Yields:
        The indices of one step's items.
    """
    start, size = 0, 0
    for i, one in enumerate(sizes):
        if i > start and size + one > most:
            yield range(start, i)
            start, size = i, 0
        size += one
    if sizes:
        yield range(start, len(sizes))
