"""Compiled code cannot be stopped. What takes too long goes on by itself, and at most a few such threads do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from serving.errors import InvalidInputError, OverloadedError
from serving.workers.time_limit import within

R = TypeVar("R")
MOST_SECONDS = 10.0
"""For all parts of a request's grammar. What the limits on schemas let through takes a second at most."""
MOST_LATE = 2
"""Compilations that go on after their requests were refused; until one of them ends, no other begins."""


class Patience:
    """Runs work that usually ends soon. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._late: list[Future[None]] = []

    def __call__(self, work: Callable[[], R], at: str, taken: float = 0.0) -> R:
        """Return what `work` returns, or raise what it raises, if it ends in time.

        Args:
            at: the part of the request that the work is for.
            taken: seconds that earlier work for the same request took.

        Raises:
            InvalidInputError: they and it take more than `MOST_SECONDS`.
            OverloadedError: earlier work that took longer still runs.
        """
        with self._lock:
            self._late = [done for done in self._late if not done.done()]
            if len(self._late) >= MOST_LATE:
                raise OverloadedError("earlier grammars are still being compiled; try again later", MOST_SECONDS)
        ended: Future[None] = Future()

        def run() -> R:
            try:
                return work()
            finally:
                ended.set_result(None)

        try:
            return within(max(0.0, MOST_SECONDS - taken), run)
        except TimeoutError:
            with self._lock:
                self._late.append(ended)
            raise InvalidInputError(
                f"it takes more than {MOST_SECONDS:g} s to compile; send a simpler one", at=at
            ) from None
