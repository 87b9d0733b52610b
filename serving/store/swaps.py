"""Changes of task in replicas' weights: a stream that each replica adds to, for whoever watches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import orjson

from serving.store.connection import Connection

_KEPT = 1000
_AT_ONCE = 200


@dataclass(frozen=True)
class NamedSwap:
    """One change of task in a replica's weights.

    Attributes:
        left, entered: names of tasks; None stands for the base, ``@other`` for what is no task's version: a merge, or a
            delta on trial.
        seconds: that it took.
        at: unix seconds at its end.
    """

    left: str | None
    entered: str | None
    seconds: float
    at: float


@dataclass(frozen=True)
class SwapsOfReplica:
    """What a replica tells at one time.

    Attributes:
        id: of the stream's entry.
        skipped: further changes, which are only counted.
    """

    id: str
    replica: str
    swaps: Sequence[NamedSwap]
    skipped: int


class Swaps:
    """The stream. Old entries leave it; nothing depends on them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._key = connection.control_key("swaps")

    def add(self, replica: str, swaps: Sequence[NamedSwap], skipped: int) -> None:
        told = {"replica": replica, "swaps": orjson.dumps([asdict(one) for one in swaps]), "skipped": skipped}
        with self._connection.store_errors:
            self._connection.client.xadd(self._key, told, maxlen=_KEPT, approximate=True)

    def after(self, id: str) -> list[SwapsOfReplica]:
        """The entries after the stream entry `id`, at most 200. Does not wait. What cannot be read is left out."""
        with self._connection.store_errors:
            rows = self._connection.client.xrange(self._key, min=f"({id}", count=_AT_ONCE)
        return [found for entry, fields in rows if (found := _read(entry.decode(), fields)) is not None]

    def last_id(self) -> str:
        """The id of the newest entry; ``0-0`` where there is none."""
        with self._connection.store_errors:
            newest = self._connection.client.xrevrange(self._key, count=1)
        return newest[0][0].decode() if newest else "0-0"


def _read(id: str, fields: dict[bytes, bytes]) -> SwapsOfReplica | None:
    try:
        swaps = [NamedSwap(**one) for one in orjson.loads(fields[b"swaps"])]
        return SwapsOfReplica(id, fields[b"replica"].decode(), swaps, int(fields[b"skipped"]))
    except (KeyError, TypeError, ValueError):  # of another version of this server
        return None
