"""Threads for what a request costs beside its forward pass: making rows of its inputs, and answers of its results.

They are few, and no request keeps one: after each step the next client has its turn (`serving.workers.turns`). Long
steps are left to half of the threads, so that short ones never wait for a long one to end. Work ends with its request:
what was given up gets no further turn.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.errors import UnavailableError
from serving.workers.steps import Steps
from serving.workers.turns import Turns

_log = logging.getLogger(__name__)

T = TypeVar("T")
_SHORT = 1 << 14
"""The largest short step: 16,384 characters take `tokenizers` some 15 ms, at worst 60."""


@dataclass(eq=False)
class _Job:
    client: Hashable
    steps: Steps[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]
    given_up: bool = False

    def end(self, how: Callable[[Any], None], value: Any) -> None:
        """Resolve the future on its own loop, unless nobody waits for it any more."""

        def finish() -> None:
            if not self.done.done():
                how(value)

        try:
            self.loop.call_soon_threadsafe(finish)
        except RuntimeError:
            _log.debug("the event loop that asked is closed")


class WorkerPool:
    """Does work in steps, in turns.

    Args:
        threads: at least 2.
    """

    def __init__(self, threads: int) -> None:
        self._changed = threading.Condition()
        self._short: Turns[_Job] = Turns()
        self._long: Turns[_Job] = Turns()
        self._stopping = False
        lines = [(self._long, self._short), (self._short,)]
        self._threads = [
            threading.Thread(target=self._work, args=(lines[i % 2],), name=f"ken-worker-{i}", daemon=True)
            for i in range(threads)
        ]

    def __len__(self) -> int:
        """How many requests wait for a turn."""
        return len(self._short) + len(self._long)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads after their present steps; what still waits fails."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        while job := self._taken((self._short, self._long)):
            job.end(job.done.set_exception, UnavailableError("the server is stopping"))

    async def run(self, client: Hashable, steps: Steps[T]) -> T:
        """Do work in a client's turns and wait for its result; what it raises is raised here.

        Args:
            client: whoever shares turns.

        Raises:
            UnavailableError: the workers stop.
        """
        try:
            size = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # typeshed leaves it open
        loop = asyncio.get_running_loop()
        job = _Job(client, steps, loop, loop.create_future())
        self._put(job, size)
        try:
            return await job.done  # type: ignore[no-any-return]  # of the same steps
        finally:
            self._give_up(job)

    def _put(self, job: _Job, size: int) -> None:
        with self._changed:
            if self._stopping:
                job.end(job.done.set_exception, UnavailableError("the server is stopping"))
            elif job.given_up:
                job.steps.close()
            elif size <= _SHORT:
                self._short.add(job.client, job)
                self._changed.notify()
            else:
                self._long.add(job.client, job)
                self._changed.notify_all()  # one alone might be of those that leave long steps

    def _give_up(self, job: _Job) -> None:
        with self._changed:
            job.given_up = True
            waited = self._short.discard(job.client, job) or self._long.discard(job.client, job)
        if waited:
            job.steps.close()

    # On the threads

    def _work(self, lines: Sequence[Turns[_Job]]) -> None:
        while job := self._next(lines):
            try:
                size = next(job.steps)
            except StopIteration as end:
                job.end(job.done.set_result, end.value)
            except BaseException as error:
                job.end(job.done.set_exception, error)
            else:
                self._put(job, size)

    def _next(self, lines: Sequence[Turns[_Job]]) -> _Job | None:
        """Whose turn it is; None once the workers stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or any(lines))
            return None if self._stopping else self._taken(lines)

    @staticmethod
    def _taken(lines: Sequence[Turns[_Job]]) -> _Job | None:
        line = next(filter(None, lines), None)
        return None if line is None else line.take()
