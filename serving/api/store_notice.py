"""A header of all answers by a replica that may not know the store's latest changes: plain ASGI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Ken-Store"
DOCUMENTED: dict[str, dict[str, Any]] = {
    HEADER: {
        "description": "only where the replica may answer by an older revision: `unreachable; seconds=N`, for how long "
        "the store has not answered, or `other-history`, after the store was emptied, restored or exchanged",
        "schema": {"type": "string"},
    }
}
"""The header as OpenAPI describes headers."""


class StoreNotice:
    """Adds the header while there is something to say.

    Args:
        notice: the header's value; empty where all is well.
    """

    def __init__(self, app: ASGIApp, notice: Callable[[], str]) -> None:
        self._app = app
        self._notice = notice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_notice(message: Message) -> None:
            if message["type"] == "http.response.start" and (notice := self._notice()):
                MutableHeaders(scope=message)[HEADER] = notice
            await send(message)

        await self._app(scope, receive, send_with_notice)
