"""Which continuations run in the next step, and whose keys and values have room. Pure: no torch, no clock, no threads.

A continuation *waits* until its keys and values have room. Room goes to the key that has least of it, and among a key's
own continuations in the order of arrival. From then on a continuation *runs*, until it has ended. A step runs
continuations of one key, or of several that can run together: each that has its last token to compute gets a token,
then prompts get so many tokens, oldest first. The keys take turns, the one that ran longest ago first; a new one comes
after those that wait for their turn.

Room is counted in tokens, in blocks. If a running continuation needs another block and there is none, the youngest one
of the key that has most room gives up its keys and values, and waits again at its old place. The oldest of all that run
is never stopped by others, and no continuation is taken that has no room alone, so all of them end.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from serving.generation.prefixes import Prefix, prefix_of
from serving.generation.sequence import Continuation

T = TypeVar("T")


@dataclass(frozen=True)
class Room:
    """Room for keys and values.

    Attributes:
        tokens: for all continuations together.
        block: tokens by which a continuation's part grows.
    """

    tokens: int
    block: int

    @property
    def longest(self) -> int:
        """Tokens of a continuation that has room alone, its prompt included; the last one needs none."""
        return self.tokens // self.block * self.block + 1

    def blocks(self, tokens: int) -> int:
        """Tokens that a part for so many takes."""
        return -(-tokens // self.block) * self.block


@dataclass(frozen=True)
class Part(Generic[T]):
    """What a step computes of one continuation."""

    of: Continuation[T]
    tokens: int
    copied: Prefix[T] | None = None
    """What is taken from another continuation first; None: nothing."""

    @property
    def end(self) -> int:
        """Tokens whose keys and values are there after the step. Asked before anything is copied."""
        return (self.of.computed if self.copied is None else self.copied.tokens) + self.tokens


class Schedule(Generic[T]):
    """Continuations of all keys.

    Args:
        room: for keys and values.
        rows: continuations of a key that run at most, and of several keys in one step.
        copies: whether keys and values can be copied from one continuation to another.

    Attributes:
        preempted: how often a continuation gave up its keys and values.
    """

    def __init__(self, room: Room, rows: int, copies: bool = False) -> None:
        self.room = room
        self._copies = copies
        self.preempted = 0
        self._rows = rows
        self._numbers = count()
        self._turn = 0
        self._waiting: list[Continuation[T]] = []
        self._running: dict[Hashable, list[Continuation[T]]] = {}
        self._ran: dict[Hashable, float] = {}
        """The turn of each running key that was its last; of a new key, just before the last one of all."""
        self._held: dict[int, int] = {}
        """Tokens of room that each running continuation has, by number."""

    def __len__(self) -> int:
        return len(self._waiting) + self.running

    @property
    def waiting(self) -> int:
        """Continuations without room."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Continuations with room."""
        return len(self._held)

    @property
    def used(self) -> int:
        """Tokens of room that continuations have."""
        return sum(self._held.values())

    def all(self) -> Iterator[Continuation[T]]:
        yield from self._waiting
        for some in self._running.values():
            yield from some

    def add(self, some: Iterable[Continuation[T]]) -> None:
        """Take continuations, each of which fits alone."""
        for one in some:
            one.number = next(self._numbers)
            self._waiting.append(one)

    def remove(self, one: Continuation[T]) -> None:
        """Take out a continuation that has ended, and what room it had."""
        if self._held.pop(one.number, None) is None:
            if one in self._waiting:
                self._waiting.remove(one)
            return
        some = self._running[one.key]
        some.remove(one)
        if not some:
            del self._running[one.key], self._ran[one.key]

    def drop(self, now: float) -> list[Continuation[T]]:
        """Take out continuations that are abandoned or past their deadline."""
        gone = [one for one in self.all() if one.abandoned or one.deadline <= now]
        for one in gone:
            self.remove(one)
            one.forget()
        return gone

    def ran(self, keys: Iterable[Hashable]) -> None:
        """Count the turn of some running keys as had; those that come first have their next one first."""
        for key in keys:
            self._turn += 1
            self._ran[key] = self._turn

    def has_others(self, keys: Collection[Hashable]) -> bool:
        """Whether a continuation of another key than these could run now."""
        self._admit()
        return any(other not in keys for other in self._running)

    def running_by_key(self) -> dict[Hashable, Sequence[Continuation[T]]]:
        """The continuations of each key that could run now; the key that ran longest ago first."""
        self._admit()
        keys = sorted(self._running, key=lambda k: (self._ran[k], self._running[k][0].number))
        return {key: self._running[key] for key in keys}

    def together(self, keys: Sequence[Hashable]) -> list[Hashable]:
        """The first of some running keys, as many as a step has rows for."""
        taken, rows = list(keys[:1]), len(self._running[keys[0]])
        for key in keys[1:]:
            rows += len(self._running[key])
            if rows > self._rows:
                break
            taken.append(key)
        return taken

    def plan(self, keys: Collection[Hashable], prompt_tokens: int) -> list[Part[T]]:
        """What the next step of some keys computes, a key's parts one behind the other.

        Args:
            prompt_tokens: the most tokens of prompts, beside the one token of each continuation whose prompt is done.
        """
        self._admit()
        running = [one for key in keys for one in self._running.get(key, ())]
        parts = [Part(one, 1) for one in running if one.left == 1 and self._has_room(one)]
        running = [one for one in running if one.number in self._held]  # an older one may have taken room since
        parts = [part for part in parts if part.of.number in self._held]
        for one in sorted(running, key=lambda c: c.number):
            if one.left <= 1 or prompt_tokens <= 0:
                continue
            prefix = self._prefix_of(one)
            if not (prefix and prefix.is_worth_waiting):
                left = one.left - (0 if prefix is None else prefix.tokens)
                parts.append(Part(one, min(left, prompt_tokens), prefix))
                prompt_tokens -= parts[-1].tokens
        order = {key: place for place, key in enumerate(keys)}
        return sorted(parts, key=lambda part: order[part.of.key])

    def _prefix_of(self, one: Continuation[T]) -> Prefix[T] | None:
        return prefix_of(one, self._running[one.key]) if self._copies and not one.computed else None

    def _admit(self) -> None:
        """Give room to those that wait; a key that runs enough is passed over, nobody else is."""
        while (one := self._next()) is not None:
            some = self._running.get(one.key, [])
            needed = self.room.blocks(self._needed(one))
            if self.used + needed > self.room.tokens:
                return
            self._waiting.remove(one)
            self._held[one.number] = needed
            self._ran.setdefault(one.key, self._turn - 0.5)
            insort(self._running.setdefault(one.key, some), one, key=lambda c: c.number)

    def _next(self) -> Continuation[T] | None:
        """Who is next to have room: the first of the key that has least, of keys that run fewer than they may."""
        first: dict[Hashable, Continuation[T]] = {}
        for one in self._waiting:
            if one.key not in first and len(self._running.get(one.key, ())) < self._rows:
                first[one.key] = one
        return min(first.values(), key=lambda one: (self._room_of(one.key), one.number), default=None)

    def _room_of(self, key: Hashable) -> int:
        return sum(self._held[one.number] for one in self._running.get(key, ()))

    def _youngest(self) -> Continuation[T]:
        """Who gives up its room: the youngest of the key that has most, but not the oldest of all."""
        oldest = min(some[0].number for some in self._running.values())
        by_room = sorted(self._running, key=self._room_of, reverse=True)
        return next(some[-1] for key in by_room if (some := self._running[key])[-1].number != oldest)

    def _needed(self, one: Continuation[T]) -> int:
        """Tokens of room for what is known, and for the next token."""
        return min(len(one) + 1, one.longest)

    def _has_room(self, one: Continuation[T]) -> bool:
        """Give a running continuation room for its last token, if need be that of another."""
        if one.number not in self._held:
            return False
        more = self.room.blocks(len(one)) - self._held[one.number]
        while more > 0 and self.used + more > self.room.tokens:
            youngest = self._youngest()
            self._preempt(youngest)
            if youngest is one:
                return False
        self._held[one.number] += max(more, 0)
        return True

    def _preempt(self, one: Continuation[T]) -> None:
        self.remove(one)
        one.forget()
        self.preempted += 1
        insort(self._waiting, one, key=lambda c: c.number)
