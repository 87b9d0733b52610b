"""The revision, which counts changes, and the stream of events, which announces them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.store.connection import Connection


@dataclass(frozen=True)
class Event:
    """The announcement of one change."""

    id: str
    """Of the stream's entry."""
    task: str
    """Name of the changed task; ``@keys`` where API keys changed, ``@store`` where the store was adopted."""
    revision: int
    """The store's revision after the change."""


class Events:
    """Events and the revision, for readers that follow the store.

    The stream is a hint: only the revision tells a reader whether it has seen every change.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def revision(self) -> int:
        """How many changes the store has seen."""
        with self._connection.store_errors:
            return int(self._connection.client.get(self._connection.control_key("revision")) or 0)

    def is_at(self, revision: int, mark: str) -> bool:
        """Whether the latest change is the one with this revision and mark.

        Args:
            mark: empty for a change that has none.
        """
        client, control = self._connection.client, self._connection.control_key
        with self._connection.store_errors:
            pipe = client.pipeline(transaction=False)
            pipe.get(control("revision"))
            pipe.hget(control("marks"), str(revision))
            found, found_mark = pipe.execute()
        return (int(found or 0), (found_mark or b"").decode()) == (revision, mark)

    def marks(self, revisions: Sequence[int]) -> dict[int, str]:
        """The marks of changes by the revisions they led to; empty for a change that has none, see `Lineage`."""
        with self._connection.store_errors:
            found = self._connection.client.hmget(self._connection.control_key("marks"), list(map(str, revisions)))
        return {revision: (mark or b"").decode() for revision, mark in zip(revisions, found, strict=True)}

    def after(self, id: str, block_seconds: float) -> list[Event]:
        """Events after the stream entry `id`, at most 100; waits up to `block_seconds` for the first one.

        Args:
            id: ``0`` for all events the stream still has, ``$`` for those to come.
        """
        stream, block = self._connection.control_key("events"), int(block_seconds * 1000)
        with self._connection.store_errors:
            answer = self._connection.client.xread({stream: id}, count=100, block=block)
        entries = answer.values() if isinstance(answer, dict) else (rows for _, rows in answer)
        return _events([e for rows in entries for e in (rows[0] if isinstance(answer, dict) else rows)])

    def since(self, id: str) -> list[Event]:
        """Events after the stream entry `id`, at most 100. Does not wait."""
        with self._connection.store_errors:
            return _events(self._connection.client.xrange(self._connection.control_key("events"), f"({id}", count=100))

    def last_id(self) -> str:
        """The id of the newest stream entry; ``0`` where the stream is empty."""
        with self._connection.store_errors:
            newest = self._connection.client.xrevrange(self._connection.control_key("events"), count=1)
        return newest[0][0].decode() if newest else "0"


def _events(rows: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Event]:
    return [Event(id.decode(), told[b"task"].decode(), int(told[b"revision"])) for id, told in rows]
