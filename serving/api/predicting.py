"""The way of a prediction through a replica, the same for all protocols: admit, read, resolve, predict, measure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import Request

from serving.api.middleware import UnreadBodyError
from serving.api.resolve import Resolved, Resolver
from serving.errors import BadRequestError, OverloadedError, ServingError
from serving.inference import Prediction
from serving.service import Service

_TIMEOUT_HEADER = "x-request-timeout-ms"


@dataclass(frozen=True)
class TaskQuery:
    """What a request asks of a task, in the form that all protocols share.

    Attributes:
        inputs: one element for each input: plain JSON of the kind's inputs, or `TokenIds`.
        parameters: plain JSON of the kind's parameters.
        kind: the kind to answer; None: the one that the task answers by itself.
        task: the task that the body names; None: the path or a header names it.
        key: an end user, whom a route keeps at one version; None: a header may name one.
    """

    inputs: Sequence[object]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    task: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class TaskAnswer:
    """A prediction and the name, without alias, of the task that made it."""

    task: str
    prediction: Prediction

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers: which delta answered, and how long each stage took in milliseconds."""
        stages = ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in self.prediction.timing.stages())
        return {"X-Ken-Delta": self.prediction.digest, "Server-Timing": stages}


class Predictor:
    """Answers the queries of all protocols.

    Attributes:
        resolve: finds the delta that answers a request.
    """

    def __init__(self, service: Service, resolver: Resolver) -> None:
        self._service = service
        self._admission = service.admission
        self.resolve = resolver

    async def __call__(
        self, request: Request, read: Callable[[], Awaitable[TaskQuery]], task: str | None = None
    ) -> TaskAnswer:
        """Answer a request.

        Args:
            read: reads the body; called after the request is admitted.
            task: the task, where the path names it; an unknown task is then refused before the body is read.

        Raises:
            ServingError: the request is not answered; each subclass has an HTTP status of its own.
        """
        started = time.perf_counter()
        resolved: Resolved | None = None
        code = 500
        stages: Sequence[tuple[str, float]] = ()
        try:
            self._admission.check_open()
            self._admission.check_free(self._service.engine)
            timeout = self._timeout(request)
            if task is None:
                self.resolve.authenticate(request)
            else:
                resolved = self.resolve(request, task)
            query = await read()
            resolved = resolved or self.resolve(request, query.task, query.key)
            self._admission.check_count(len(query.inputs))
            prediction = await self._predict(resolved, query, timeout)
            code, stages = 200, prediction.timing.stages()
            self._shadow(resolved, query, prediction)
            return TaskAnswer(resolved.task, prediction)
        except ServingError as error:
            code = error.status
            raise
        except asyncio.CancelledError:
            code = 499
            raise
        except UnreadBodyError as unread:
            code = unread.status
            raise
        finally:
            self._observe(request, resolved, code, time.perf_counter() - started, stages)

    def _observe(
        self,
        request: Request,
        resolved: Resolved | None,
        code: int,
        seconds: float,
        stages: Sequence[tuple[str, float]],
    ) -> None:
        task, digest = (resolved.task, resolved.digest) if resolved else (None, None)
        self._service.metrics.requests.observe(task, digest, code, seconds, stages)
        if self._service.tracer is not None:
            self._service.tracer.record(request.headers, task, digest, code, seconds, stages)

    async def _predict(self, resolved: Resolved, query: TaskQuery, timeout: float) -> Prediction:
        """Ask the service. The request counts as running only from here on, when its body has arrived."""
        ends = time.monotonic() + timeout
        ask = partial(
            self._service.predict,
            resolved.digest,
            query.inputs,
            query.parameters,
            kind=query.kind,
            client=resolved.client,
        )
        with self._admission.prediction(self._service.engine):
            try:
                return await ask(timeout=timeout)
            except OverloadedError:
                if not await self._service.shadows.clear():
                    raise
                return await ask(timeout=ends - time.monotonic())

    def _shadow(self, resolved: Resolved, query: TaskQuery, prediction: Prediction) -> None:
        if resolved.shadow is not None:
            shadows = self._service.shadows
            shadows.offer(resolved.task, resolved.shadow, query.inputs, query.parameters, prediction)

    def _timeout(self, request: Request) -> float:
        """Seconds that the client asks for, at most the server's own limit."""
        most = self._service.settings.request_timeout_seconds
        asked = request.headers.get(_TIMEOUT_HEADER)
        if asked is None:
            return most
        if not (asked.isascii() and asked.isdigit() and 0 < len(asked) < 10 and int(asked)):
            raise BadRequestError(f"X-Request-Timeout-Ms is {asked[:40]!r}; expected whole milliseconds, at least 1")
        return min(int(asked) / 1000, most)
