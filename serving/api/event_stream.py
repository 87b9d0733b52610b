"""Server-sent events: how one is written, and how a stream waits for what it has to send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.api.middleware import GoneError
from serving.errors import DeadlineError

T = TypeVar("T")

MEDIA_TYPE = "text/event-stream"
HEADERS = {"X-Accel-Buffering": "no"}
"""nginx and its like pass events on one by one, and do not collect them."""
COMMENT = b": still generating\n\n"
"""Read as nothing by every client. It keeps proxies from taking a quiet connection for a dead one."""


QUIET = b": nothing happened\n\n"
"""The same, of a stream that waits for what happens."""


class SentByItself(Response):
    """An answer that sends itself by a coroutine, which may raise until it has sent something."""

    def __init__(self, send_all: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._send_all = send_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._send_all(scope, receive, send)


def event(content: Any, name: str | None = None, id: str | None = None) -> bytes:
    """One event. Its data is one line, since JSON has no line breaks of its own."""
    data = content if isinstance(content, bytes) else orjson.dumps(content)
    named = b"" if name is None else b"event: %b\n" % name.encode()
    placed = b"" if id is None else b"id: %b\n" % id.encode()
    return b"%b%bdata: %b\n\n" % (placed, named, data)


async def while_heard(
    coming: AsyncIterator[T], receive: Receive, pause: float, seconds: float
) -> AsyncGenerator[T | None]:
    """What comes, for as long as the client is there; None whenever nothing came for `pause` seconds after the first.

    Args:
        receive: of a request whose body was read, so that its next message is that the client has left.
        seconds: until what has not come is too late.

    Raises:
        GoneError: the client has left.
        DeadlineError: the time is up.
    """
    ends = time.monotonic() + seconds
    leaving = asyncio.ensure_future(_left(receive))
    following: asyncio.Future[T] | None = None
    begun = False
    try:
        while True:
            left = ends - time.monotonic()
            following = following or asyncio.ensure_future(anext(coming))
            waited: set[asyncio.Future[Any]] = {following, leaving}
            timeout = min(left, pause) if begun else left
            await asyncio.wait(waited, timeout=max(timeout, 0), return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                try:
                    found = following.result()
                except StopAsyncIteration:
                    return
                following, begun = None, True
                yield found
            elif leaving.done():
                raise GoneError
            elif left <= timeout:
                raise DeadlineError(f"the text was not complete within {seconds:g} s")
            else:
                yield None
    finally:
        await _given_up(leaving)
        if following is not None:
            await _given_up(following)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _given_up(waiting: asyncio.Future[Any]) -> None:
    waiting.cancel()
    await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.exception()  # which nobody waits for any more
