"""The revision that counts every change, and the stream that tells of them."""

from __future__ import annotations

from dataclasses import dataclass

from serving.store.connected import Connected


@dataclass(frozen=True)
class Event:
    """A change: of a task, or of the keys where `task` is ``@keys``."""

    id: str
    task: str
    revision: int


class Changes(Connected):
    """Following what others change. The stream is a hint; the revision decides."""

    def revision(self) -> int:
        with self._with:
            return int(self._client.get(self._control("revision")) or 0)

    def events(self, after: str, block_seconds: float) -> list[Event]:
        """Changes later than the stream entry `after` (``$`` for new ones), waiting up to `block_seconds`."""
        with self._with:
            answer = self._client.xread({self._control("events"): after}, count=100, block=int(block_seconds * 1000))
        entries = answer.values() if isinstance(answer, dict) else (rows for _, rows in answer)
        flat = [e for rows in entries for e in (rows[0] if isinstance(answer, dict) else rows)]
        return [Event(i.decode(), f[b"task"].decode(), int(f[b"revision"])) for i, f in flat]

    def last_event(self) -> str:
        """The id of the newest stream entry."""
        with self._with:
            newest = self._client.xrevrange(self._control("events"), count=1)
        return newest[0][0].decode() if newest else "0"

    def _recorded(self, name: str) -> list[str]:
        """The keys every script that changes something writes last: the name's history, the stream, the revision."""
        return [self._control("history", name), self._control("events"), self._control("revision")]
