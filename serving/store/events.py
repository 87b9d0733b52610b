"""The revision, which counts changes, and the stream of events, which announces them."""

from __future__ import annotations

from dataclasses import dataclass

from serving.store.connection import Connection


@dataclass(frozen=True)
class Event:
    """The announcement of one change."""

    id: str
    """Of the stream's entry."""
    task: str
    """Name of the changed task, or ``@keys`` where API keys changed."""
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

    def after(self, id: str, block_seconds: float) -> list[Event]:
        """Events after the stream entry `id`, at most 100; waits up to `block_seconds` for the first one.

        Args:
            id: ``0`` for all events the stream still has, ``$`` for those to come.
        """
        stream, block = self._connection.control_key("events"), int(block_seconds * 1000)
        with self._connection.store_errors:
            answer = self._connection.client.xread({stream: id}, count=100, block=block)
        entries = answer.values() if isinstance(answer, dict) else (rows for _, rows in answer)
        flat = [e for rows in entries for e in (rows[0] if isinstance(answer, dict) else rows)]
        return [Event(i.decode(), f[b"task"].decode(), int(f[b"revision"])) for i, f in flat]

    def last_id(self) -> str:
        """The id of the newest stream entry; ``0`` where the stream is empty."""
        with self._connection.store_errors:
            newest = self._connection.client.xrevrange(self._connection.control_key("events"), count=1)
        return newest[0][0].decode() if newest else "0"
