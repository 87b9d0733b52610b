"""Work that may never end, such as a regular expression of unknown origin, given so much time and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")


def within(seconds: float, work: Callable[[], R]) -> R:
    """What `work` returns or raises, if it does in time.

    Compiled code cannot be stopped: what takes longer goes on in a thread of its own, which ends with the process.

    Raises:
        TimeoutError: it takes longer.
    """
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="ken-timelimit", daemon=True).start()
    return future.result(seconds)
