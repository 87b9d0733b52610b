"""Ties between processes that Linux keeps: ends with the parent, and takes over orphans. Elsewhere they do nothing."""

from __future__ import annotations

import ctypes
import sys

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


def signal_when_parent_ends(number: int) -> None:
    """This process gets a signal when the thread that made it ends. The tie lasts through ``exec``, not ``fork``."""
    _prctl(_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Descendants of this process whose parent ends become its children."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
