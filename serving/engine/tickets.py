"""A request's rows in the engine: where their results are collected, and how long its stages took."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass, field

from serving.pipelines.base import Raw

_log = logging.getLogger(__name__)


@dataclass
class Timing:
    """Seconds a request spent in each stage: until its task was on the device, until its inputs were rows, and in its
    slowest batch."""

    load: float = 0.0
    tokenize: float = 0.0
    queue: float = 0.0
    swap: float = 0.0
    model: float = 0.0
    mixed: bool = False
    """Whether some of its rows ran in a batch that mixes tasks."""

    def stages(self) -> tuple[tuple[str, float], ...]:
        names = ("load", "tokenize", "queue", "swap", "model")
        return tuple((name, getattr(self, name)) for name in names)

    def at_least(self, other: Timing) -> None:
        """Have the engine's stages be no shorter than another's."""
        self.queue = max(self.queue, other.queue)
        self.swap = max(self.swap, other.swap)
        self.model = max(self.model, other.model)
        self.mixed |= other.mixed


@dataclass
class Ticket:
    """A request's rows in the engine; `done` resolves on the caller's event loop, without polling.

    Attributes:
        results: one a row, None until the row has run.
        missing: rows that have not run.
    """

    results: list[Raw | None]
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop
    missing: int
    timing: Timing = field(default_factory=Timing)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, rows: int) -> Ticket:
        """For so many rows, in a coroutine that is to wait for them."""
        loop = asyncio.get_running_loop()
        return cls([None] * rows, loop.create_future(), loop, rows)

    def give(self, index: int, result: Raw, taken: Timing) -> None:
        """The result of a row, and how long its batch took; with the last row the request is answered.

        Batches that end at the same time may call it on their threads.
        """
        with self._lock:
            self.timing.at_least(taken)
            self.results[index] = result
            self.missing -= 1
            is_last = self.missing == 0
        if is_last:
            self.resolve()

    def resolve(self, error: BaseException | None = None) -> None:
        """End the wait, with an error or without; may be called on any thread and more than once."""

        def finish() -> None:
            if self.done.done():
                return
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(finish)
        except RuntimeError:
            _log.debug("the event loop that asked is closed")
