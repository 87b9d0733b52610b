"""The way of a request for text through a replica, the same for all protocols: take it, generate, write, measure.

Nothing is sent before the first token is there, so that a request which fails before has the HTTP status of its
failure. A failure after that is an event of the stream, in the form of the protocol's failures, and ends the stream.
Requests for text are not copied for shadows: two samples of one prompt say nothing about two versions.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serving.api import event_stream
from serving.api.failures import Failure, Shape, failure_of, logged
from serving.api.merging import MergedModel
from serving.api.middleware import GoneError
from serving.api.predicting import Predictor, Taken, merge_header, server_timing
from serving.api.resolve import Resolved
from serving.errors import InvalidInputError
from serving.generation.pieces import Finish, Piece, Token
from serving.generation.query import GenerationQuery
from serving.replica.continuing import Generation
from serving.service import Service
from serving.telemetry.measured import Measured

PAUSE_SECONDS = 15.0
"""After so long without a token, a comment is sent. Proxies give up connections that are quiet for a minute."""
_WRITTEN_AT_ONCE = 1000
"""Tokens whose answer is written on the event loop: a few milliseconds, if their probabilities are told."""
_LATE_SECONDS = 5.0
"""After its deadline, a client that does not read has so long to read why the text ends."""
_JSON = "application/json"


@dataclass(frozen=True)
class Answering:
    """A task that generates text for a request.

    Attributes:
        resolved: the task, and the delta or the merge that answers.
    """

    resolved: Resolved
    generation: Generation


@dataclass
class Continuation:
    """All pieces of one continuation, put together."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None
    stop: str | int | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        if piece.finish is not None:
            self.finish, self.stop = piece.finish, piece.stop


class Form(ABC):
    """How a protocol writes one answer.

    Attributes:
        shape: the form of the protocol's failures.
    """

    shape: Shape

    @abstractmethod
    def whole(self, continuations: Sequence[Continuation]) -> Any:
        """The JSON of an answer that is sent at once."""

    @abstractmethod
    def events(self, piece: Piece) -> bytes:
        """What a stream says of a piece; empty where that is nothing."""

    def end(self) -> bytes:
        """What a stream says last."""
        return b""

    def failed(self, failure: Failure) -> bytes:
        """What a stream says last of a failure."""
        return event_stream.event(bytes(self.shape(failure).body))


@dataclass(frozen=True)
class TaskGeneration:
    """A request for text, in the form that all protocols share.

    Attributes:
        form: makes the form of the answer.
        streams: whether the text is sent as it comes.
        names: what the protocol calls the fields of the query, for refusals.
        task, key: as in a `TaskQuery`.
    """

    query: GenerationQuery
    form: Callable[[Answering], Form]
    streams: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    task: str | MergedModel | None = None
    key: str | None = None


class Generator:
    """Answers the requests for text of all protocols."""

    def __init__(self, service: Service, predictor: Predictor) -> None:
        self._service = service
        self._predictor = predictor

    def __call__(
        self, request: Request, read: Callable[[], Awaitable[TaskGeneration]], task: str | None = None
    ) -> Response:
        """The answer to a request. It is generated while it is sent.

        Args:
            read, task: as in `Predictor.taken`.
        """

        async def send_all(scope: Scope, receive: Receive, send: Send) -> None:
            async with self._predictor.taken(request, read, task) as taken:
                await self.answer(taken, scope, receive, send)

        return event_stream.SentByItself(send_all)

    async def answer(self, taken: Taken[TaskGeneration], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that was taken.

        Raises:
            ServingError: nothing was sent, and the request is not answered.
            GoneError: the client left.
        """
        asked = taken.question
        with _in_the_words_of(asked):
            self._check_count(asked.query)
        ends = time.monotonic() + taken.seconds(self._service.settings.generation_timeout_seconds)
        async with self._generation(taken, ends) as generation:
            form = asked.form(Answering(taken.resolved, generation))
            left = ends - time.monotonic()
            async with aclosing(event_stream.while_heard(aiter(generation), receive, PAUSE_SECONDS, left)) as pieces:
                if asked.streams:
                    stream = _Stream(send, lambda: _headers(taken.resolved, generation), ends + _LATE_SECONDS)
                    last = await _pass_on(pieces, form, stream, scope, taken.measured)
                else:
                    content = await _whole(
                        form, await _collected(pieces, len(asked.query.prompts) * asked.query.choices)
                    )
        # what the text took of the memory is free before the client has its last byte
        if asked.streams:
            await stream.end(last)
        else:
            await Response(content, headers=_headers(taken.resolved, generation), media_type=_JSON)(
                scope, receive, send
            )

    @asynccontextmanager
    async def _generation(self, taken: Taken[TaskGeneration], ends: float) -> AsyncIterator[Generation]:
        service, asked, resolved = self._service, taken.question, taken.resolved
        seconds = ends - time.monotonic()
        with service.admission.prediction(service.engine), _in_the_words_of(asked):
            generating = service.generate(resolved.digest, asked.query, seconds, resolved.client, resolved.merge)
            async with generating as generation:
                try:
                    yield generation
                finally:
                    taken.measured.stages = generation.facts.stages
                    service.metrics.requests.observe_texts(taken.measured.task, generation.facts)
                    if resolved.merge is None:
                        service.placing.count(resolved.task, generation.prompt_tokens + generation.generated)

    def _check_count(self, query: GenerationQuery) -> None:
        """The service takes any number, and one request must not be as much work as hundreds."""
        most, prompts = self._service.settings.max_inputs, len(query.prompts)
        if prompts * query.choices > most:
            raise InvalidInputError(
                f"found {prompts} prompts and {query.choices} continuations of each, at most {most} continuations are "
                "allowed in one request; send fewer, or raise KEN_MAX_INPUTS on the server",
                at="prompts",
            )


class _Stream:
    """An answer of events. It starts with the first of them.

    Args:
        headers: gives its headers when it starts.
        ends: the time of `time.monotonic` after which a client that does not read is taken for gone.
    """

    def __init__(self, send: Send, headers: Callable[[], Mapping[str, str]], ends: float) -> None:
        self._unbounded = send
        self._headers = headers
        self._ends = ends
        self.started = False

    async def __call__(self, events: bytes, more: bool = True) -> None:
        if not self.started:
            self.started = True
            made = Response(headers={**self._headers(), **event_stream.HEADERS}, media_type=event_stream.MEDIA_TYPE)
            headers = [header for header in made.raw_headers if header[0] != b"content-length"]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if events or not more:
            await self._send({"type": "http.response.body", "body": events, "more_body": more})

    async def end(self, events: bytes) -> None:
        await self(events, more=False)

    async def _send(self, message: Message) -> None:
        try:
            async with asyncio.timeout(max(0.0, self._ends - time.monotonic())):
                await self._unbounded(message)
        except TimeoutError:
            raise GoneError from None


async def _pass_on(
    pieces: AsyncIterator[Piece | None], form: Form, stream: _Stream, scope: Scope, measured: Measured
) -> bytes:
    """Send what comes. Returns what to send last."""
    try:
        async for piece in pieces:
            await stream(event_stream.COMMENT if piece is None else form.events(piece))
    except Exception as error:
        if not stream.started:
            raise
        told = logged(scope, error)
        measured.broken = told.status
        return form.failed(failure_of(scope, told))
    return form.end()


async def _whole(form: Form, found: Sequence[Continuation]) -> bytes:
    """The body of a whole answer, made beside the event loop where that takes long."""

    def write() -> bytes:
        return orjson.dumps(form.whole(found))

    if sum(len(one.tokens) for one in found) <= _WRITTEN_AT_ONCE:
        return write()
    return await asyncio.to_thread(write)


async def _collected(pieces: AsyncIterator[Piece | None], number: int) -> list[Continuation]:
    found = [Continuation() for _ in range(number)]
    async for piece in pieces:
        if piece is not None:
            found[piece.choice].add(piece)
    return found


def _headers(resolved: Resolved, generation: Generation) -> dict[str, str]:
    """Which delta or merge answers, and what the stages took, up to the first token."""
    return {"X-Ken-Delta": generation.digest, **merge_header(resolved.merge), **server_timing(generation.facts.stages)}


@contextmanager
def _in_the_words_of(asked: TaskGeneration) -> Iterator[None]:
    """Within it, refusals name fields of the query as the protocol does."""
    try:
        yield
    except InvalidInputError as error:
        if error.at is None:
            raise
        name, dot, inner = error.at.partition(".")
        if name == "prompts" and len(asked.query.prompts) == 1:
            dot = inner = ""  # a request with one prompt need not number it
        reason = str(error).removeprefix(f"{error.at}: ")
        raise type(error)(reason, f"{asked.names.get(name, name)}{dot}{inner}") from error
