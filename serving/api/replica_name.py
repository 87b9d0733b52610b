"""A header of all answers that names the replica which answered: plain ASGI."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Ken-Replica"
DOCUMENTED: dict[str, dict[str, Any]] = {
    HEADER: {"description": "name of the replica that answered", "schema": {"type": "string"}}
}
"""The header as OpenAPI describes headers."""


class ReplicaName:
    """Adds the header."""

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app = app
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_name(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = self._replica
            await send(message)

        await self._app(scope, receive, send_with_name)
