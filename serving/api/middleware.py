"""Request ids, the limit on bodies, and counting what is in flight: plain ASGI, around every route."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.failures import Shape, failure_of
from serving.errors import TooLargeError
from serving.service import Service

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestIds:
    """Give every request an X-Request-Id, and echo it.

    Args:
        echo: False where what stands in front (Ray Serve) adds the header to answers itself.
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

        await self._app(scope, receive, send_with_id)


class BodyLimit:
    """Answer 413 to a body that is, or claims to be, longer than allowed, without keeping it."""

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int], shape_of: Callable[[str], Shape]) -> None:
        self._app = app
        self._limit_of = limit_of
        self._shape_of = shape_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        claimed = Headers(scope=scope).get("content-length", "0")
        if claimed.isdigit() and int(claimed) > limit:
            await self._refuse(limit, scope, receive, send)
            return
        seen = 0
        started = False

        async def counting() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise TooLongBodyError
            return message

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counting, noting)
        except TooLongBodyError:
            if not started:
                await self._refuse(limit, scope, receive, send)

    async def _refuse(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        error = TooLargeError(f"the body is longer than the {limit} bytes allowed; send less at a time")
        response = self._shape_of(scope["path"])(failure_of(scope, error))
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


class TooLongBodyError(BaseException):
    """Passes through the routes' own handlers."""


class InFlight:
    """Count requests from their start to the last byte of their answer, so that a drain can wait for them."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._service.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._service.in_flight -= 1
