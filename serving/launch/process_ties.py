"""Ties between processes that Linux keeps: ends with the parent, and takes over orphans. Elsewhere they do nothing."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Container
from contextlib import suppress

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


def signal_when_parent_ends(number: int, parent: int) -> None:
    """This process gets a signal when the thread that made it ends. The tie lasts through ``exec``, not ``fork``.

    Args:
        parent: process id of the parent. If it has ended already, this process gets the signal now.
    """
    _prctl(_SET_PDEATHSIG, number)
    if sys.platform.startswith("linux") and os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Descendants of this process whose parent ends become its children."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def reap_orphans(own: Container[int]) -> None:
    """Forget adopted processes that have ended, but none of `own`, which others wait for."""
    if not sys.platform.startswith("linux"):
        return
    import psutil  # only here: `haproxy_start` starts sooner with the standard library alone

    ended = os.WEXITED | os.WNOHANG
    with suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, ended | os.WNOWAIT)) is not None and found.si_pid not in own:
            os.waitid(os.P_PID, found.si_pid, ended)
        if found is not None:  # one of `own`, which would be found again and again
            for child in psutil.Process().children():
                if child.pid not in own:
                    os.waitid(os.P_PID, child.pid, ended)


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
