"""Ties between processes that Linux keeps: ends with the parent, and takes over orphans. Elsewhere they do nothing."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Container
from contextlib import suppress

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


def signal_when_parent_ends(number: int) -> None:
    """This process gets a signal when the thread that made it ends. The tie lasts through ``exec``, not ``fork``."""
    _prctl(_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Descendants of this process whose parent ends become its children."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def reap_orphans(own: Container[int]) -> None:
    """Forget adopted processes that have ended, but none of `own`, which others wait for."""
    if not sys.platform.startswith("linux"):
        return
    ended = os.WEXITED | os.WNOHANG
    with suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, ended | os.WNOWAIT)) is not None and found.si_pid not in own:
            os.waitid(os.P_PID, found.si_pid, ended)


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
