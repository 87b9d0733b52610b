"""Copies of requests for versions whose answers nobody gets: asked after the real answer, compared, counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from serving.errors import OverloadedError
from serving.routing.agreement import compare
from serving.telemetry.request_metrics import RequestMetrics

_log = logging.getLogger(__name__)

_MOST = 8
"""Shadows at once: so few that what they leave in line is soon done, and enough to run some in one batch."""


class Answered(Protocol):
    """What of an answer is compared."""

    @property
    def kind(self) -> str: ...
    @property
    def outputs(self) -> list[Any]: ...


class Predict(Protocol):
    """`serving.service.Service.predict`."""

    async def __call__(
        self, digest: str, inputs: Sequence[object], parameters: Mapping[str, Any], timeout: float, kind: str | None
    ) -> Answered: ...


class Shadows:
    """Asks shadows in the background of the event loop that answers requests.

    They count as no request in flight, and whoever needs their places may take them at any time (`clear`). What
    becomes of them is counted and nothing else: no failure is told to anybody, no input or answer is kept.

    Args:
        busy: whether real requests would have to wait for a shadow more.
        seconds: a shadow's deadline, of its own.
    """

    def __init__(self, predict: Predict, busy: Callable[[], bool], metrics: RequestMetrics, seconds: float) -> None:
        self._predict = predict
        self._busy = busy
        self._metrics = metrics
        self._seconds = seconds
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def offer(
        self, task: str, digest: str, inputs: Sequence[object], parameters: Mapping[str, Any], given: Answered
    ) -> None:
        """Ask a version what another has answered, unless there is no room to; returns at once."""
        if len(self._running) >= _MOST or self._busy():
            self._metrics.observe_shadow(task, digest, "skipped")
            return
        asking = asyncio.get_running_loop().create_task(self._ask(task, digest, inputs, parameters, given))
        self._running.add(asking)

        def ended(asked: asyncio.Task[None]) -> None:
            self._running.discard(asked)
            if asked.cancelled():
                self._metrics.observe_shadow(task, digest, "skipped")

        asking.add_done_callback(ended)

    async def clear(self) -> bool:
        """Give up all shadows; False if there were none. Their places are free on return."""
        running = list(self._running)
        for asking in running:
            asking.cancel()
        if running:
            await asyncio.wait(running)
        return bool(running)

    async def _ask(
        self, task: str, digest: str, inputs: Sequence[object], parameters: Mapping[str, Any], given: Answered
    ) -> None:
        try:
            shadowed = await self._predict(digest, inputs, parameters, self._seconds, given.kind)
            found = await asyncio.to_thread(compare, given.kind, given.outputs, shadowed.outputs)
        except OverloadedError:
            self._metrics.observe_shadow(task, digest, "skipped")
        except Exception as error:
            _log.debug("shadow %s of task %s failed: %s", digest, task, type(error).__name__)  # a message may quote
            self._metrics.observe_shadow(task, digest, "failed")
        else:
            self._metrics.observe_shadow(task, digest, "agreed" if found.agreed else "differed", found.difference)
