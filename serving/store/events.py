"""The revision that counts every change, and the stream that tells of them."""

from __future__ import annotations

from dataclasses import dataclass

from serving.store.connection import Connection


@dataclass(frozen=True)
class Event:
    """A change: of a task, or of the keys where `task` is ``@keys``."""

    id: str
    task: str
    revision: int


class Events:
    """Following what others change. The stream is a hint; the revision decides."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def revision(self) -> int:
        """The store's revision."""
        with self._connection.store_errors:
            return int(self._connection.client.get(self._connection.control_key("revision")) or 0)

    def after(self, id: str, block_seconds: float) -> list[Event]:
        """Changes later than the stream entry `id` (``$`` for new ones), waiting up to `block_seconds`."""
        stream, block = self._connection.control_key("events"), int(block_seconds * 1000)
        with self._connection.store_errors:
            answer = self._connection.client.xread({stream: id}, count=100, block=block)
        entries = answer.values() if isinstance(answer, dict) else (rows for _, rows in answer)
        flat = [e for rows in entries for e in (rows[0] if isinstance(answer, dict) else rows)]
        return [Event(i.decode(), f[b"task"].decode(), int(f[b"revision"])) for i, f in flat]

    def last_id(self) -> str:
        """The id of the newest stream entry, ``0`` where there is none."""
        with self._connection.store_errors:
            newest = self._connection.client.xrevrange(self._connection.control_key("events"), count=1)
        return newest[0][0].decode() if newest else "0"
