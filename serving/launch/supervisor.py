"""Runs a function in a child process with a session of its own, and ends every process that it leaves behind.

Ray's processes do not survive signals in the wrong order: a SIGTERM to the process group kills the raylet before the
driver, and workers whose raylet was killed serve on. So the driver runs in a session of its own and gets SIGTERM when
this process dies. Both the driver and this process end everything that is left below them, so that either may be
killed; the driver also cleans up in place of this process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path

import psutil

from serving.launch.process_ties import adopt_orphans, signal_when_parent_ends

_GRACE_SECONDS, _KILL_SECONDS = 3.0, 2.0


def supervise(work: Callable[[], int], stop_seconds: float, clean_up: Callable[[], None]) -> int:
    """Run `work` in a forked child and return its exit code. This process must have only one thread, since it forks.

    SIGTERM, SIGINT and SIGHUP are passed on to the child as SIGTERM. On Linux, every descendant of the child has
    ended when this returns, and soon after this process was killed. On other systems only the child has.

    Args:
        stop_seconds: how long the child may take to end after a signal, before it is killed.
        clean_up: what the caller does after this returned; the child does it if this process was killed.
    """
    adopt_orphans()
    sys.stdout.flush()
    sys.stderr.flush()
    supervisor, child = os.getpid(), os.fork()
    if child == 0:
        _be_the_child(work, supervisor, clean_up)
    _pass_signals_on(child, stop_seconds)
    code = _wait_for(child)
    signal.setitimer(signal.ITIMER_REAL, 0)
    end_descendants()
    return code if code >= 0 else 128 - code


def _pass_signals_on(child: int, stop_seconds: float) -> None:
    def stop(*_: object) -> None:
        if not any(signal.getitimer(signal.ITIMER_REAL)):
            signal.setitimer(signal.ITIMER_REAL, stop_seconds)
        _send(child, signal.SIGTERM)

    signal.signal(signal.SIGALRM, lambda *_: _send(child, signal.SIGKILL))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)


def _be_the_child(work: Callable[[], int], supervisor: int, clean_up: Callable[[], None]) -> None:
    code = 1
    try:
        os.setsid()
        adopt_orphans()
        signal.signal(signal.SIGTERM, _leave)
        signal_when_parent_ends(signal.SIGTERM, supervisor)
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            end_descendants()
            if os.getppid() != supervisor:
                clean_up()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _leave(number: int, frame: object) -> None:
    """Until `work` has a handler of its own: what was started is cleaned up."""
    sys.exit(128 + number)


def _wait_for(child: int) -> int:
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def end_descendants() -> None:
    """Wait a moment for this process's descendants, orphans among them, and kill those that do not end by then.

    New ones that appear meanwhile are killed too. All have ended when this returns, unless two seconds are not enough:
    for a killed process that waits for a disk, or where processes are forked faster than they are killed.
    """
    if not sys.platform.startswith("linux"):
        return
    patient = time.monotonic() + _GRACE_SECONDS
    deadline = patient + _KILL_SECONDS
    while (left := _descendants()) and (now := time.monotonic()) < deadline:
        if now >= patient:
            _kill(left, deadline)
        _reap()
        time.sleep(0.02)
    _reap()


def _kill(left: list[int], deadline: float) -> None:
    """Kill processes, and the descendants that are new since they were listed, until there are no new ones."""
    killed: set[int] = set()
    while left and time.monotonic() < deadline:
        for pid in left:
            _send(pid, signal.SIGKILL)
        killed.update(left)
        left = [pid for pid in _listed_below(os.getpid()) if pid not in killed]


def _descendants() -> list[int]:
    """Those that run. It reads what the machine tells of all its processes, which takes 10 to 100 ms."""
    return [process.pid for process in psutil.Process().children(recursive=True) if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _listed_below(pid: int) -> Iterator[int]:
    """Descendants of a process by Linux's lists of children, in less than 1 ms, so that few are forked meanwhile.

    A list may lack a child while others of it end, and a kernel may have no lists: so nothing follows from none.
    """
    for children in glob(f"/proc/{pid}/task/*/children"):
        try:
            listed = Path(children).read_text().split()
        except OSError:  # the thread has ended
            continue
        for child in map(int, listed):
            yield child
            yield from _listed_below(child)


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
