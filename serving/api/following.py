"""Those who follow what happens: the store is read once for all of them, and only while there are any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serving.errors import OverloadedError, StoreError
from serving.replica.happenings import Happening, Happenings

MOST_FOLLOWERS = 32
"""Of one replica. Each is a connection that stays open."""
_EVERY_SECONDS = 0.5
_MOST_WAITING = 1000
_RETRY_SECONDS = 15.0

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Follower:
    """One who follows.

    Attributes:
        waiting: what happened and was not sent yet.
        lost: whether something was left out, since it reads too slowly.
    """

    waiting: asyncio.Queue[Happening] = field(default_factory=lambda: asyncio.Queue(_MOST_WAITING))
    lost: bool = False

    def take(self, found: Sequence[Happening]) -> None:
        for one in found:
            try:
                self.waiting.put_nowait(one)
            except asyncio.QueueFull:
                self.lost = True
                return

    async def next(self, seconds: float) -> Happening | None:
        """What happened next; None if nothing did for some seconds."""
        try:
            async with asyncio.timeout(seconds):
                return await self.waiting.get()
        except TimeoutError:
            return None


class Following:
    """Tells all followers what happens.

    Args:
        happenings: makes a reader of the store.
    """

    def __init__(self, happenings: Callable[[], Happenings]) -> None:
        self._happenings = happenings
        self._followers: set[Follower] = set()
        self._reading: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    @asynccontextmanager
    async def follow(self) -> AsyncIterator[Follower]:
        """Within it, whatever happens is put into `Follower.waiting`.

        Raises:
            OverloadedError: too many follow already.
        """
        if len(self._followers) >= MOST_FOLLOWERS:
            raise OverloadedError(
                f"{MOST_FOLLOWERS} clients follow the events of this replica already; try again later", _RETRY_SECONDS
            )
        follower = Follower()
        self._followers.add(follower)
        if self._reading is None:
            self._begun.clear()
            self._reading = asyncio.create_task(self._read())
        try:
            await self._begun.wait()
            yield follower
        finally:
            self._followers.remove(follower)

    async def _read(self) -> None:
        found = self._happenings()
        read: Callable[[], Sequence[Happening]] = found.begin
        while self._followers:
            try:
                new = await asyncio.to_thread(read)
                read = found.new
                for follower in self._followers:
                    follower.take(new)
            except StoreError:
                pass  # the replica's own watch says so in the log
            except Exception:
                _log.exception("what happens in the server cannot be told")
                await asyncio.sleep(_RETRY_SECONDS)
            self._begun.set()
            await asyncio.sleep(_EVERY_SECONDS)
        self._reading = None
