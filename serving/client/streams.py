"""Text that comes piece by piece, over a connection that stays open until its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Self

import httpx

from serving.client.errors import ClientError
from serving.client.events import EventReader
from serving.client.results import TextEnd, TextPiece
from serving.client.sending import Sending


class _Ended:
    """What both kinds of streams know at their end."""

    _end: TextEnd | None = None

    @property
    def end(self) -> TextEnd:
        """The delta that answered, and how many tokens there were.

        Raises:
            ClientError: not all pieces were read.
        """
        if self._end is None:
            raise ClientError("a stream knows its end when all its pieces were read")
        return self._end


class TextStream(_Ended):
    """The pieces of a text, for one loop. A ``with`` block gives up what is not read within it."""

    def __init__(self, http: httpx.Client, sending: Sending) -> None:
        self._http = http
        self._sending = sending
        self._open = ExitStack()

    def __iter__(self) -> Iterator[TextPiece]:
        with self._open:
            response = self._begin()
            reader = EventReader(response)
            try:
                for line in response.iter_lines():
                    if (piece := reader.read(line)) is not None:
                        yield piece
            except httpx.RequestError as error:
                raise self._sending.lost(error) from error
            self._end = reader.check_complete()

    def close(self) -> None:
        """Give up the rest; the server stops generating it."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self) -> httpx.Response:
        """The answer when its first bytes are there, after as many attempts as that takes."""
        while True:
            try:
                response = self._open.enter_context(self._http.stream(**self._sending.attempt()))
                if not response.is_success:
                    response.read()
                    self._open.close()
                    self._sending.call.refused(response)
                return response
            except (ClientError, httpx.RequestError) as error:
                time.sleep(self._sending.pause(error))


class AsyncTextStream(_Ended):
    """The pieces of a text, for one loop. An ``async with`` block gives up what is not read within it."""

    def __init__(self, http: httpx.AsyncClient, sending: Sending) -> None:
        self._http = http
        self._sending = sending
        self._open = AsyncExitStack()

    async def __aiter__(self) -> AsyncIterator[TextPiece]:
        async with self._open:
            response = await self._begin()
            reader = EventReader(response)
            try:
                async for line in response.aiter_lines():
                    if (piece := reader.read(line)) is not None:
                        yield piece
            except httpx.RequestError as error:
                raise self._sending.lost(error) from error
            self._end = reader.check_complete()

    async def close(self) -> None:
        """Give up the rest; the server stops generating it."""
        await self._open.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _begin(self) -> httpx.Response:
        while True:
            try:
                response = await self._open.enter_async_context(self._http.stream(**self._sending.attempt()))
                if not response.is_success:
                    await response.aread()
                    await self._open.aclose()
                    self._sending.call.refused(response)
                return response
            except (ClientError, httpx.RequestError) as error:
                await asyncio.sleep(self._sending.pause(error))
