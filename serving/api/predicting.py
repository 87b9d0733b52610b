"""A prediction's way through a replica, the same for every protocol: admit, read, resolve, answer, measure."""

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
from serving.errors import BadRequestError, InvalidInputError, OverloadedError, ServingError
from serving.service import Answer, Service

_TIMEOUT_HEADER = "x-request-timeout-ms"


@dataclass(frozen=True)
class Question:
    """What a request asks, whatever protocol it came by.

    Attributes:
        inputs: plain JSON of the kind's inputs, or `TokenIds`, one an element.
        parameters: plain JSON of the kind's parameters.
        kind: None: what the task answers by itself.
        task: named in the body; None leaves it to the path or the header.
        key: who asks, for a route that keeps each at one version; None leaves it to the header.
    """

    inputs: Sequence[object]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    task: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Answered:
    """An answer and the task, without alias, that it is an answer of."""

    task: str
    answer: Answer

    @property
    def headers(self) -> dict[str, str]:
        """Which delta answered, and what the stages took (milliseconds)."""
        stages = ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in self.answer.timing.stages())
        return {"X-Ken-Delta": self.answer.digest, "Server-Timing": stages}


class Predictor:
    """Answers the questions of all protocols.

    Attributes:
        resolve: finds the delta that would answer a request.
    """

    def __init__(self, service: Service, resolver: Resolver) -> None:
        self._service = service
        self.resolve = resolver
        self._running = 0

    async def __call__(
        self, request: Request, read: Callable[[], Awaitable[Question]], task: str | None = None
    ) -> Answered:
        """Answer a request.

        Args:
            read: reads the body; called once the request was admitted.
            task: where the path names it: an unknown one is refused before its body is read.

        Raises:
            ServingError: in one of its forms, each with its HTTP status.
        """
        started = time.perf_counter()
        resolved: Resolved | None = None
        code = 500
        stages: Sequence[tuple[str, float]] = ()
        try:
            self._service.admit()
            self._refuse_if_full()
            timeout = self._timeout(request)
            if task is None:
                self.resolve.authenticate(request)
            else:
                resolved = self.resolve(request, task)
            question = await read()
            resolved = resolved or self.resolve(request, question.task, question.key)
            self._check_count(question.inputs)
            answer = await self._answer(resolved, question, timeout)
            code, stages = 200, answer.timing.stages()
            self._shadow(resolved, question, answer)
            return Answered(resolved.task, answer)
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

    async def _answer(self, resolved: Resolved, question: Question, timeout: float) -> Answer:
        """Only now does the request count as running: one whose body does not arrive holds nobody's place."""
        self._refuse_if_full()
        self._running += 1
        ends = time.monotonic() + timeout
        ask = partial(
            self._service.predict,
            resolved.digest,
            question.inputs,
            question.parameters,
            kind=question.kind,
            client=resolved.client,
        )
        try:
            return await ask(timeout=timeout)
        except OverloadedError:
            if not await self._service.shadows.clear():
                raise
            return await ask(timeout=ends - time.monotonic())
        finally:
            self._running -= 1

    def _shadow(self, resolved: Resolved, question: Question, answer: Answer) -> None:
        if resolved.shadow is not None:
            shadows = self._service.shadows
            shadows.offer(resolved.task, resolved.shadow, question.inputs, question.parameters, answer)

    def _refuse_if_full(self) -> None:
        most = self._service.settings.max_requests
        if self._running >= most:
            seconds = self._service.engine.backlog_seconds()
            raise OverloadedError(f"{most} requests are in flight already; try again in {seconds:g} s", seconds)

    def _timeout(self, request: Request) -> float:
        """Seconds: what the client asks for, at most the server's own limit."""
        most = self._service.settings.request_timeout_seconds
        asked = request.headers.get(_TIMEOUT_HEADER)
        if asked is None:
            return most
        if not (asked.isascii() and asked.isdigit() and 0 < len(asked) < 10 and int(asked)):
            raise BadRequestError(f"X-Request-Timeout-Ms is {asked[:40]!r}; expected whole milliseconds, at least 1")
        return min(int(asked) / 1000, most)

    def _check_count(self, inputs: Sequence[object]) -> None:
        most = self._service.settings.max_inputs
        if not inputs:
            raise InvalidInputError("inputs: expected at least one input")
        if len(inputs) > most:
            raise InvalidInputError(f"inputs: found {len(inputs)}, at most {most} are allowed in one request")
