"""Letting go of the pages of mapped files, once they have been read.

A page of a mapped file that a process has read stays in the process's memory until the system needs room. So a base
that was copied to where it is served takes its size twice. The map itself may stay: what is read again comes from the
file, as it did the first time.

Linux only (madvise(2), proc_pid_maps(5), proc_pid_pagemap(5)). Elsewhere, and where /proc cannot be read, nothing is
done.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

_DONTNEED = 4
_ENTRY_BYTES = 8
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


class _Range(NamedTuple):
    """Addresses of bytes."""

    start: int
    end: int


def let_go(files: Iterable[int]) -> int:
    """Let go of what this process holds of files in memory because it has read them through maps.

    A map that the process has written to is left as it is. Other threads may read the maps meanwhile.

    Args:
        files: descriptors.

    Returns:
        Bytes of the maps whose pages were let go.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        clean = [mapped for mapped in _ranges(files) if not _was_written(mapped)]
    except OSError:
        return 0
    return sum(mapped.end - mapped.start for mapped in clean if _advise(mapped))


def _ranges(files: Iterable[int]) -> Iterator[_Range]:
    """Where the files are mapped. Their names tell: on overlay file systems, device numbers differ."""
    names = {os.readlink(f"/proc/self/fd/{opened}") for opened in files}
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] in names:
                start, _, end = fields[0].partition("-")
                yield _Range(int(start, 16), int(end, 16))


def _was_written(mapped: _Range) -> bool:
    """Whether a page is no longer the file's but the process's own."""
    size = os.sysconf("SC_PAGE_SIZE")
    pages = (mapped.end - mapped.start) // size
    with open("/proc/self/pagemap", "rb", buffering=0) as table:
        found = os.pread(table.fileno(), pages * _ENTRY_BYTES, mapped.start // size * _ENTRY_BYTES)
    entries = np.frombuffer(found, np.uint64)
    own = (entries & (_PRESENT | _SWAPPED) != 0) & (entries & _OF_FILE == 0)
    return entries.size < pages or bool(own.any())


def _advise(mapped: _Range) -> bool:
    length = ctypes.c_size_t(mapped.end - mapped.start)
    return bool(ctypes.CDLL(None).madvise(ctypes.c_void_p(mapped.start), length, _DONTNEED) == 0)
