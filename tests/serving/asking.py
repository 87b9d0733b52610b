"""One test for both clients: a conversation written as plain calls, held by either."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from serving.client import AsyncClient, Client

Ask = Callable[..., Any]
"""``ask(url, method, *arguments, client={...})`` makes one call with a client of its own."""


def waiting(url: str, method: str, *arguments: Any, client: dict[str, Any] | None = None, **named: Any) -> Any:
    """One call of `Client`."""
    with Client(url, **client or {}) as made:
        return getattr(made, method)(*arguments, **named)


def awaited(url: str, method: str, *arguments: Any, client: dict[str, Any] | None = None, **named: Any) -> Any:
    """One call of `AsyncClient`."""

    async def ask() -> Any:
        async with AsyncClient(url, **client or {}) as made:
            answer = getattr(made, method)(*arguments, **named)
            assert inspect.iscoroutine(answer)
            return await answer

    return asyncio.run(ask())


BOTH: tuple[Ask, ...] = (waiting, awaited)
