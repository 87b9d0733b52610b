"""Letting go of the pages of mapped files, once they have been read.

A page of a mapped file that a process has read stays in the process's memory until the system needs room. So a base
that was copied to where it is served takes its size twice. The map itself may stay: what is read again comes from the
file, as it did the first time.

Linux only (madvise(2), proc_pid_pagemap(5)). Elsewhere, and where /proc cannot be read, nothing is done.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

_DONTNEED = 4
_ENTRY_BYTES = 8
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


class _Pages(NamedTuple):
    """Pages of memory: the number of the first one, and of the one behind them."""

    first: int
    end: int


def let_go(tensors: Iterable[torch.Tensor]) -> int:
    """Let go of what this process holds of mapped files in memory because it has read tensors that lie there.

    The tensors keep their maps meanwhile, so nothing else can come to lie at these addresses. A tensor that lies
    elsewhere, or was written to by this process, is left as it is. Other threads may read the tensors meanwhile.

    Args:
        tensors: on the CPU.

    Returns:
        Bytes of the pages that were let go.
    """
    held = list(tensors)
    if not sys.platform.startswith("linux"):
        return 0
    size = os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as table:
            of_files = [pages for pages in map(_pages, held) if _are_of_a_file(pages, table.fileno())]
    except OSError:
        return 0
    return sum((pages.end - pages.first) * size for pages in of_files if _advise(pages, size))


def _pages(tensor: torch.Tensor) -> _Pages:
    """The pages with a byte of a tensor's storage."""
    size, storage = os.sysconf("SC_PAGE_SIZE"), tensor.untyped_storage()
    start = storage.data_ptr()
    return _Pages(start // size, -(-(start + storage.nbytes()) // size))


def _are_of_a_file(pages: _Pages, table: int) -> bool:
    """Whether no page is the process's own, as all memory is that was written to and is not a file's."""
    count = pages.end - pages.first
    found = np.frombuffer(os.pread(table, count * _ENTRY_BYTES, pages.first * _ENTRY_BYTES), np.uint64)
    own = (found & (_PRESENT | _SWAPPED) != 0) & (found & _OF_FILE == 0)
    return found.size == count and not own.any()


def _advise(pages: _Pages, size: int) -> bool:
    start, length = ctypes.c_void_p(pages.first * size), ctypes.c_size_t((pages.end - pages.first) * size)
    return bool(ctypes.CDLL(None).madvise(start, length, _DONTNEED) == 0)
