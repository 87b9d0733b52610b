"""Shadows: versions that get a copy of a request after it was answered. Their answers are only compared and counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from serving.errors import OverloadedError
from serving.routing.agreement import compare_each
from serving.routing.kinds import KINDS
from serving.telemetry.request_metrics import RequestMetrics

_log = logging.getLogger(__name__)

_MOST = 8
"""Shadow requests at once: few enough that their rows in the queue are soon done, enough to share batches."""


class Answered(Protocol):
    """The parts of an answer that are compared."""

    @property
    def kind(self) -> str: ...
    @property
    def outputs(self) -> list[Any]: ...


class Predict(Protocol):
    """`serving.replica.inference.Inference`."""

    async def __call__(
        self, digest: str, inputs: Sequence[object], parameters: Mapping[str, Any], timeout: float, kind: str | None
    ) -> Answered: ...


class Shadows:
    """Asks shadows in the background, on the event loop that answers requests.

    A shadow request does not count as a request in flight, and can be cancelled at any time (`clear`). Only what
    became of its inputs is counted: no failure is reported to anybody, and no input or answer is kept.

    Args:
        predict: answers a shadow's request.
        busy: whether one more shadow would make real requests wait.
        seconds: the deadline of a shadow request.
    """

    def __init__(self, predict: Predict, busy: Callable[[], bool], metrics: RequestMetrics, seconds: float) -> None:
        self._predict = predict
        self._busy = busy
        self._metrics = metrics
        self._seconds = seconds
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Shadow requests that are running."""
        return len(self._running)

    def offer(
        self, task: str, digest: str, inputs: Sequence[object], parameters: Mapping[str, Any], given: Answered
    ) -> None:
        """Ask a version the question that another one has answered, unless the server is busy; returns at once."""
        if len(self) >= _MOST or self._busy():
            self._metrics.observe_shadow(task, digest, {"skipped": len(inputs)})
            return
        asking = asyncio.get_running_loop().create_task(self._ask(task, digest, inputs, parameters, given))
        self._running.add(asking)

        def ended(asked: asyncio.Task[None]) -> None:
            self._running.discard(asked)
            if asked.cancelled():
                self._metrics.observe_shadow(task, digest, {"skipped": len(inputs)})

        asking.add_done_callback(ended)

    async def clear(self) -> bool:
        """Cancel all shadow requests, and wait until their places are free; False if there were none."""
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
            compare = KINDS[given.kind].compare
            found = await asyncio.to_thread(compare_each, compare, given.outputs, shadowed.outputs)
        except OverloadedError:
            self._metrics.observe_shadow(task, digest, {"skipped": len(inputs)})
        except Exception as error:
            _log.debug("shadow %s of task %s failed: %s", digest, task, type(error).__name__)  # a message may quote
            self._metrics.observe_shadow(task, digest, {"failed": len(inputs)})
        else:
            agreed = sum(one.agreed for one in found)
            differences = [one.difference for one in found if one.difference is not None]
            self._metrics.observe_shadow(task, digest, {"agreed": agreed, "differed": len(found) - agreed}, differences)
