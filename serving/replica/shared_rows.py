"""Rows that the tasks of one request share: inputs are encoded once for all tasks that encode them alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Self

from serving.pipelines.base import Prepared


class SharedRows:
    """The rows of one request's inputs, by what they depend on beside the inputs and the parameters.

    To be used as an async context manager around everything that asks for rows: encoding that has not ended by then
    is given up.

    Args:
        tasks: how many tasks the request asks.
    """

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        self._encoding: dict[Hashable, asyncio.Task[list[Prepared]]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for encoding in self._encoding.values():
            encoding.cancel()
        await asyncio.gather(*self._encoding.values(), return_exceptions=True)

    async def rows(self, key: Hashable, prepare: Callable[[], Coroutine[Any, Any, list[Prepared]]]) -> list[Prepared]:
        """The rows of a key. The first caller's `prepare` makes them; later callers get the same rows, or its error.

        A caller that is cancelled takes the rows from no other caller.
        """
        encoding = self._encoding.get(key)
        if encoding is None:
            encoding = self._encoding[key] = asyncio.create_task(prepare())
        return await asyncio.shield(encoding)
