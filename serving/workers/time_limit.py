"""A time limit for work that may never end, such as matching a regular expression from an untrusted file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")


def within(seconds: float, work: Callable[[], R]) -> R:
    """Return what `work` returns, or raise what it raises, if it ends in time.

    Compiled code cannot be stopped. Work that takes longer goes on in its own thread, which ends with the process.

    Raises:
        TimeoutError: the work takes longer than `seconds`.
    """
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="ken-timelimit", daemon=True).start()
    return future.result(seconds)
