"""Those who follow what happens: the store is read once for all of them, and only while there are any."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serving.errors import OverloadedError, StoreError
from serving.replica.happenings import Happening, Happenings
from serving.security.keys import Principal

MOST_FOLLOWERS = 32
"""Of one replica. Each is a connection that stays open."""
MOST_OF_A_KEY = 8
"""Of these with one key, so that no key takes the places of all others."""
_EVERY_SECONDS = 0.5
_MOST_WAITING = 1000
_MOST_SWAPS = 500
_RETRY_SECONDS = 15.0

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Follower:
    """One who follows.

    Attributes:
        who: what happens is put into `waiting` as far as this key may see it.
        waiting: what happened and was not sent yet.
        skipped: swaps that are only counted, by replica: too many wait already.
        lost: whether a change was left out, since the client reads too slowly.
    """

    who: Principal
    waiting: asyncio.Queue[Happening] = field(default_factory=lambda: asyncio.Queue(_MOST_WAITING))
    skipped: Counter[str] = field(default_factory=Counter)
    lost: bool = False

    def take(self, found: Sequence[Happening]) -> None:
        for one in found:
            if not is_seen(one, self.who):
                continue
            if one.kind == "swap" and self.waiting.qsize() >= _MOST_SWAPS:
                self.skipped[one.told["replica"]] += one.told.get("skipped", 1)
            elif self.waiting.full():
                self.lost = True
                return
            else:
                self.waiting.put_nowait(one)

    async def next(self, seconds: float) -> Happening | None:
        """What happened next, and how many swaps were skipped once nothing else waits; None if nothing did for some
        seconds."""
        if self.waiting.empty() and self.skipped:
            replica, swaps = self.skipped.popitem()
            return Happening("swap", {"replica": replica, "skipped": swaps})
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
    async def follow(self, who: Principal) -> AsyncIterator[Follower]:
        """Within it, whatever happens is put into `Follower.waiting`, as far as a key may see it.

        Raises:
            OverloadedError: too many follow already, or too many with this key.
        """
        of_key = sum(follower.who.name == who.name for follower in self._followers)
        if len(self._followers) >= MOST_FOLLOWERS or (who.key_id and of_key >= MOST_OF_A_KEY):
            raise OverloadedError(
                f"{len(self._followers)} clients follow the events of this replica already, {of_key} of them with this "
                f"key; at most {MOST_FOLLOWERS} may, {MOST_OF_A_KEY} with one key; try again later",
                _RETRY_SECONDS,
            )
        follower = Follower(who)
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


def is_seen(found: Happening, who: Principal) -> bool:
    """Whether a key sees what happened."""
    if found.kind != "change":
        return who.sees_every_task
    task = str(found.told["task"])
    return who.may("admin") if task.startswith("@") else who.sees(task)
