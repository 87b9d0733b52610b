"""Runs a function in a child process with a session of its own, and ends every process that it leaves behind.

Ray's processes do not survive signals in the wrong order: a SIGTERM to the process group kills the raylet before the
driver, and a SIGKILL of the driver leaves HAProxy holding its port. So the driver runs in a session of its own and gets
SIGTERM when this process dies, and this process ends everything that the driver leaves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

import psutil

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_GRACE_SECONDS = 3.0


def supervise(work: Callable[[], int]) -> int:
    """Run `work` in a forked child and return its exit code. This process must have only one thread, since it forks.

    SIGTERM, SIGINT and SIGHUP are passed on to the child as SIGTERM. On Linux, every descendant of the child has
    ended when this returns. On other systems only the child has.
    """
    _prctl(_SET_CHILD_SUBREAPER, 1)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_the_child(work)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _send(child, signal.SIGTERM))
    code = _wait_for(child)
    _end_descendants()
    return code if code >= 0 else 128 - code


def _be_the_child(work: Callable[[], int]) -> None:
    os.setsid()
    _prctl(_SET_PDEATHSIG, signal.SIGTERM)
    code = 1
    try:
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait_for(child: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _end_descendants() -> None:
    """Wait for the child's descendants, whose parent is this process now, and kill those that do not end in time."""
    if not sys.platform.startswith("linux"):
        return
    deadline = time.monotonic() + _GRACE_SECONDS
    while list(_descendants()) and time.monotonic() < deadline:
        _reap()
        time.sleep(0.02)
    for process in _descendants():
        _send(process.pid, signal.SIGKILL)
    _reap()


def _descendants() -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.NoSuchProcess:
            continue


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _prctl(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
