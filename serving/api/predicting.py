"""The way of a prediction through a replica, the same for all protocols: admit, read, resolve, predict, measure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import orjson
from fastapi import Request

from serving.api.merging import MergedModel
from serving.api.middleware import GoneError, UnreadBodyError
from serving.api.resolve import Resolved, Resolver
from serving.errors import BadRequestError, OverloadedError, ServingError
from serving.replica.inference import Prediction
from serving.replica.shared_rows import SharedRows
from serving.routing.merges import Merge
from serving.service import Service
from serving.telemetry.measured import Measured
from serving.telemetry.request_metrics import MERGED_TASKS

_TIMEOUT_HEADER = "x-request-timeout-ms"


class Question(Protocol):
    """What a body asks of a task, whatever that is.

    Attributes:
        task: the task that the body names, or the merge of tasks; None: the path or a header names the task.
        key: an end user, whom a route keeps at one version; None: a header may name one.
    """

    @property
    def task(self) -> str | MergedModel | None: ...

    @property
    def key(self) -> str | None: ...


Q = TypeVar("Q", bound=Question, covariant=True)
R = TypeVar("R", bound=Question)


@dataclass(frozen=True)
class Taken(Generic[Q]):
    """A request that was admitted, resolved and read.

    Attributes:
        asked_seconds: the deadline that the client asks for, in seconds from when the request was admitted; None: none.
        measured: is told how long stages took.
    """

    question: Q
    resolved: Resolved
    asked_seconds: float | None
    measured: Measured

    def asking(self, question: R) -> Taken[R]:
        """The same request, with what its body means."""
        return Taken(question, self.resolved, self.asked_seconds, self.measured)

    def seconds(self, most: float) -> float:
        """The deadline in seconds, where the server itself allows `most`."""
        return most if self.asked_seconds is None else min(self.asked_seconds, most)


@dataclass(frozen=True)
class TaskQuery:
    """What a request asks of a task, in the form that all protocols share.

    Attributes:
        inputs: one element for each input: plain JSON of the kind's inputs, or `TokenIds`.
        parameters: plain JSON of the kind's parameters.
        kind: the kind to answer; None: the one that the task answers by itself.
        task: the task that the body names, or the merge of tasks; None: the path or a header names the task.
        key: an end user, whom a route keeps at one version; None: a header may name one.
    """

    inputs: Sequence[object]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None
    task: str | MergedModel | None = None
    key: str | None = None


@dataclass(frozen=True)
class TaskAnswer:
    """A prediction.

    Attributes:
        task: the name, without alias, of the task that made it; of a merge, of the task whose head it has.
        merge: the merge that made it; None: a version of the task did.
    """

    task: str
    prediction: Prediction
    merge: Merge | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Which delta or merge answered, what the stages took (milliseconds), and whether its batch mixed tasks."""
        timing = self.prediction.timing
        timed = server_timing(timing.stages(), timing.mixed)
        return {"X-Ken-Delta": self.prediction.digest, **merge_header(self.merge), **timed}


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
            task: the task, where the path names it; an unknown task is then refused before the body is read. If the
                body wants tasks merged, the path's task is the one whose head answers.

        Raises:
            ServingError: the request is not answered; each subclass has an HTTP status of its own.
        """
        async with self.taken(request, read, task) as taken:
            return await self.predict(taken)

    async def predict(self, taken: Taken[TaskQuery]) -> TaskAnswer:
        """Answer a request that was taken. Raises as `__call__`."""
        resolved, query = taken.resolved, taken.question
        self._admission.check_count(len(query.inputs))
        timeout = taken.seconds(self._service.settings.request_timeout_seconds)
        prediction = await self._answer(resolved, query, timeout, taken.measured)
        if resolved.merge is None:
            self._service.placing.count(resolved.task, prediction.tokens)
        return TaskAnswer(resolved.task, prediction, resolved.merge)

    @asynccontextmanager
    async def taken(
        self, request: Request, read: Callable[[], Awaitable[Q]], task: str | None = None
    ) -> AsyncIterator[Taken[Q]]:
        """Admit, read and resolve a request, whatever it asks of a task; with the end of the block it is measured.

        Args:
            read, task: as in `__call__`.

        Raises:
            ServingError: the request is not taken; each subclass has an HTTP status of its own.
        """
        measured = Measured()
        try:
            with timed(measured):
                asked_seconds = self._admit(request)
                resolved: Resolved | None = None
                if task is None:
                    self.resolve.authenticate(request)
                else:
                    resolved = self._resolved(request, measured, task)
                question = await read()
                if isinstance(question.task, MergedModel):
                    resolved = self._merge(request, measured, question.task, task)
                elif resolved is None:
                    resolved = self._resolved(request, measured, question.task, question.key)
                yield Taken(question, resolved, asked_seconds, measured)
        finally:
            self.count(measured)
            self.trace(request, measured)

    async def answer(
        self, request: Request, task: str, query: TaskQuery, timeout: float, measured: Measured, shared: SharedRows
    ) -> Prediction:
        """Answer a request's question to one of its tasks, once the request was admitted.

        Args:
            timeout: seconds.
            measured: is told to what the task resolves, and how long the stages took.
            shared: rows of the request's tasks.

        Raises:
            ServingError: as `__call__`; it concerns this task alone.
        """
        resolved = self._resolved(request, measured, task)
        return await self._answer(resolved, query, timeout, measured, shared)

    def admit(self, request: Request) -> float:
        """Let in a request whose key and body are not read yet; returns its deadline, in seconds from now.

        Raises:
            UnavailableError: the replica starts or drains.
            OverloadedError: as many predictions run as may.
            BadRequestError: the header that names a deadline has another form.
        """
        most = self._service.settings.request_timeout_seconds
        asked = self._admit(request)
        return most if asked is None else min(asked, most)

    def count(self, measured: Measured) -> None:
        """Count a question to a task, or a request that came to no task."""
        answers = self._service.metrics.requests
        answers.observe(measured.task, measured.digest, measured.code, measured.seconds, measured.stages)

    def trace(self, request: Request, measured: Measured, tasks: Sequence[Measured] = ()) -> None:
        """Make a request's spans, where the server makes spans; see `Tracer.record`."""
        if self._service.tracer is not None:
            self._service.tracer.record(request.headers, measured, tasks)

    def _resolved(self, request: Request, measured: Measured, task: str | None, key: str | None = None) -> Resolved:
        resolved = self.resolve(request, task, key)
        measured.task, measured.digest = resolved.task, resolved.digest
        return resolved

    def _merge(self, request: Request, measured: Measured, asked: MergedModel, path: str | None) -> Resolved:
        measured.task, measured.digest = MERGED_TASKS, None  # until it is known which delta would answer
        resolved = self.resolve.merge(request, asked, path)
        measured.digest = resolved.digest
        return resolved

    async def _answer(
        self,
        resolved: Resolved,
        query: TaskQuery,
        timeout: float,
        measured: Measured,
        shared: SharedRows | None = None,
    ) -> Prediction:
        prediction = await self._predict(resolved, query, timeout, shared)
        measured.stages = prediction.timing.stages()
        if prediction.texts is not None:
            self._service.metrics.requests.observe_texts(resolved.task, prediction.texts)
        self._shadow(resolved, query, prediction)
        return prediction

    async def _predict(
        self, resolved: Resolved, query: TaskQuery, timeout: float, shared: SharedRows | None
    ) -> Prediction:
        """Ask the service. The request counts as running only from here on, when its body has arrived."""
        ends = time.monotonic() + timeout
        ask = partial(
            self._service.predict,
            resolved.digest,
            query.inputs,
            query.parameters,
            kind=query.kind,
            client=resolved.client,
            shared=shared,
            merge=resolved.merge,
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

    def _admit(self, request: Request) -> float | None:
        """As `admit`; returns the deadline that the client asks for, in seconds."""
        self._admission.check_open()
        self._admission.check_free(self._service.engine)
        return _asked_seconds(request)


def _asked_seconds(request: Request) -> float | None:
    asked = request.headers.get(_TIMEOUT_HEADER)
    if asked is None:
        return None
    if not (asked.isascii() and asked.isdigit() and 0 < len(asked) < 10 and int(asked)):
        raise BadRequestError(f"X-Request-Timeout-Ms is {asked[:40]!r}; expected whole milliseconds, at least 1")
    return int(asked) / 1000


@contextmanager
def timed(measured: Measured) -> Iterator[None]:
    """Note how long what is within takes, and the HTTP status that it comes to."""
    started = time.perf_counter()
    try:
        yield
        measured.code = measured.broken or 200
    except (ServingError, UnreadBodyError, GoneError) as error:
        measured.code = error.status
        raise
    except asyncio.CancelledError:
        measured.code = 499
        raise
    finally:
        measured.seconds = time.perf_counter() - started


def merge_header(merge: Merge | None) -> dict[str, str]:
    """The header that says which merge answered, if one did."""
    return {} if merge is None else {"X-Ken-Merge": orjson.dumps(merge.plain()).decode()}


def server_timing(stages: Iterable[tuple[str, float]], mixed: bool | None = None) -> dict[str, str]:
    """The header that says how long stages took, in milliseconds, and whether a batch mixed tasks.

    Args:
        mixed: None: there was no batch.
    """
    told = [f"{name};dur={seconds * 1000:.3f}" for name, seconds in stages]
    batch = [] if mixed is None else [f'batch;desc="{"mixed" if mixed else "one task"}"']
    return {"Server-Timing": ", ".join([*told, *batch])}
