"""Walking tensors in blocks of whole rows on several threads, so that only a few blocks at a time are widened.

A tensor is seen as rows: a 1-D tensor is one row, a tensor of higher rank is (first axis, all other axes).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ken_core.bits import as_bits

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK_ELEMENTS = 1 << 18
"""As float64 a block fits a core's second-level cache; a row longer than that is a block of its own."""


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor seen as rows, shape (r, n)."""
    return tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def blocks_of(tensor: torch.Tensor) -> list[slice]:
    """Slices of rows that cover the tensor in order."""
    rows, width = rows_of(tensor).shape
    step = max(1, BLOCK_ELEMENTS // max(1, width))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def widen(tensor: torch.Tensor, rows: slice) -> npt.NDArray[np.floating]:
    """A block of a floating CPU tensor, exactly, as float32 (float64 stays float64), shape (r, n); may be a view."""
    block = rows_of(tensor)[rows]
    bits = as_bits(block).reshape(block.shape)
    if tensor.dtype == torch.bfloat16:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if tensor.dtype == torch.float16:
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.float64 if tensor.dtype == torch.float64 else np.float32)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a CPU tensor holds neither NaN nor infinity."""
    return not tensor.is_floating_point() or all(bool(np.isfinite(widen(tensor, b)).all()) for b in blocks_of(tensor))


class Workers(Protocol):
    """``in_order(work, items)``: results in the items' order, computed on several threads."""

    def __call__(self, work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]: ...


@contextmanager
def workers(threads: int | None = None) -> Iterator[Workers]:
    """Yield `Workers` on `threads` threads, by default on as many as torch may use.

    Only a few items are worked on ahead of the one that the caller asks for.
    """
    threads = threads or torch.get_num_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="ken-rows") as pool:

        def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
            ahead: deque[Future[Result]] = deque()
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

        try:
            yield in_order
        finally:  # what was begun is waited for, where the caller was interrupted; what waits its turn is not
            pool.shutdown(wait=False, cancel_futures=True)
