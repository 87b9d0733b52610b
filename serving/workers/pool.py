"""A pool of threads for a request's work beside the forward pass: turning inputs into rows, and results into answers.

The pool has few threads, and no request keeps one: after each step, the next client has its turn
(`serving.workers.turns`). Only half of the threads take long steps, so that a short step never waits for a long one to
end. When a request is given up, its work gets no further turn.
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
"""The size of the largest short step. 16,384 characters take `tokenizers` about 15 ms, at worst 60 ms."""


@dataclass(eq=False)
class _Job:
    client: Hashable
    steps: Steps[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]
    given_up: bool = False

    def end(self, how: Callable[[Any], None], value: Any) -> None:
        """Resolve the future on its own event loop, unless it was cancelled."""

        def finish() -> None:
            if not self.done.done():
                how(value)

        try:
            self.loop.call_soon_threadsafe(finish)
        except RuntimeError:
            _log.debug("the event loop of a request is closed")


class WorkerPool:
    """Runs work step by step, with turns between clients.

    Args:
        threads: their number, at least 2.
    """

    def __init__(self, threads: int) -> None:
        self._changed = threading.Condition()
        self._short: Turns[_Job] = Turns()
        self._long: Turns[_Job] = Turns()
        self._stopping = False
        queues = [(self._long, self._short), (self._short,)]
        self._threads = [
            threading.Thread(target=self._work, args=(queues[i % 2],), name=f"ken-worker-{i}", daemon=True)
            for i in range(threads)
        ]

    def __len__(self) -> int:
        """The number of requests that wait for a turn."""
        return len(self._short) + len(self._long)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads after the steps they are running. Work that still waits fails with `UnavailableError`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        while job := self._taken((self._short, self._long)):
            job.end(job.done.set_exception, UnavailableError("the server is stopping"))

    async def run(self, client: Hashable, steps: Steps[T]) -> T:
        """Run work in a client's turns and wait for its result. Raises what the work raises.

        Args:
            client: all work of one client shares that client's turns.

        Raises:
            UnavailableError: the pool stops.
        """
        try:
            size = next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # typeshed leaves it open
        loop = asyncio.get_running_loop()
        job = _Job(client, steps, loop, loop.create_future())
        self._put(job, size)
        try:
            return await job.done  # type: ignore[no-any-return]  # the result of `steps`
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
                self._changed.notify_all()  # a single notified thread might be one that takes no long steps

    def _give_up(self, job: _Job) -> None:
        with self._changed:
            job.given_up = True
            waited = self._short.discard(job.client, job) or self._long.discard(job.client, job)
        if waited:
            job.steps.close()

    # Called on the threads

    def _work(self, queues: Sequence[Turns[_Job]]) -> None:
        while job := self._next(queues):
            try:
                size = next(job.steps)
            except StopIteration as end:
                job.end(job.done.set_result, end.value)
            except BaseException as error:
                job.end(job.done.set_exception, error)
            else:
                self._put(job, size)

    def _next(self, queues: Sequence[Turns[_Job]]) -> _Job | None:
        """The job whose turn it is; None once the pool stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or any(queues))
            return None if self._stopping else self._taken(queues)

    @staticmethod
    def _taken(queues: Sequence[Turns[_Job]]) -> _Job | None:
        queue = next(filter(None, queues), None)
        return None if queue is None else queue.take()
