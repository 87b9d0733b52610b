"""Request ids, HEAD, limits on bodies, and the count of requests in flight: plain ASGI, around every route."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.admission import Admission
from serving.api.failures import Shape, failure_of
from serving.errors import ServingError, SlowBodyError, TooLargeError
from serving.telemetry import logs

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestIds:
    """Gives every request without a usable X-Request-Id a new one, and returns the id with the answer.

    Args:
        echo: False where Ray Serve, in front of this application, adds the header to answers itself.
    """

    def __init__(self, app: ASGIApp, echo: bool) -> None:
        self._app = app
        self._echo = echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = Headers(scope=scope).get("x-request-id", "").encode("latin-1")
        request_id = found if _REQUEST_ID.fullmatch(found) else uuid.uuid4().hex.encode()
        others = [(k, v) for k, v in scope["headers"] if k != b"x-request-id"]
        scope["headers"] = [*others, (b"x-request-id", request_id)]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and self._echo:
                MutableHeaders(scope=message)["X-Request-Id"] = request_id.decode()
            await send(message)

        named = logs.request_id.set(request_id.decode())
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            logs.request_id.reset(named)


class HeadAsGet:
    """Answers HEAD as GET, without the body. A path without GET has no HEAD either."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                if _is_stream(message):
                    await send({"type": "http.response.body", "body": b""})
                    raise GoneError  # nobody waits for its events, of which there may be no end
            elif not message.get("more_body", False):
                await send({"type": "http.response.body", "body": b""})

        with suppress(GoneError):
            await self._app({**scope, "method": "GET"}, receive, send_without_body)


def _is_stream(start: Message) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"])


class BodyLimit:
    """Answers 413 to a body that is, or claims to be, longer than allowed, and 408 to a body that does not arrive.

    Args:
        limit_of: the most bytes that a body under a path may have.
        seconds: the longest time from when a route begins to read a body to its last byte.
        shape_of: gives the form of failures under a path.
    """

    def __init__(
        self, app: ASGIApp, limit_of: Callable[[str], int], seconds: float, shape_of: Callable[[str], Shape]
    ) -> None:
        self._app = app
        self._limit_of = limit_of
        self._seconds = seconds
        self._shape_of = shape_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        claimed = Headers(scope=scope).get("content-length", "0")
        if claimed.isdigit() and int(claimed) > limit:
            await self._refuse(too_long(limit), scope, receive, send)
            return
        body = _Body(receive, self._seconds)
        started = False

        async def counting() -> Message:
            message = await body()
            if body.seen > limit:
                raise UnreadBodyError(too_long(limit))
            return message

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counting, noting)
        except UnreadBodyError as unread:
            if not started:
                await self._refuse(unread.error, scope, receive, send)
        except GoneError:
            pass

    async def _refuse(self, error: ServingError, scope: Scope, receive: Receive, send: Send) -> None:
        response = self._shape_of(scope["path"])(failure_of(scope, error))
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


class _Body:
    """A request's messages. Those of its body must arrive within a time; messages after the body need not."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._seconds = seconds
        self._deadline: float | None = None
        self._complete = False
        self.seen = 0

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        self._deadline = self._deadline or asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            slow = SlowBodyError(f"the body did not arrive within {self._seconds:g} s; only {self.seen} bytes did")
            raise UnreadBodyError(slow) from None
        if message["type"] == "http.disconnect":
            raise GoneError
        self.seen += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message


class UnreadBodyError(BaseException):
    """A body was not read to its end. No `Exception`, so that it passes through the routes' own handlers.

    Attributes:
        error: what the client is told.
        status: of the error.
    """

    def __init__(self, error: ServingError) -> None:
        super().__init__()
        self.error = error
        self.status = error.status


class GoneError(BaseException):
    """The client is gone, so nothing is answered. No `Exception`, for the same reason.

    Attributes:
        status: as proxies log it.
    """

    status = 499


def too_long(limit: int) -> ServingError:
    return TooLargeError(f"the body is longer than the {limit} bytes allowed; send less at a time")


class InFlight:
    """Counts requests from their start to the last byte of their answer, so that a drain can wait for them."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._admission.request():
            await self._app(scope, receive, send)
