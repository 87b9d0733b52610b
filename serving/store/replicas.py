"""Which replicas live, how far each has followed the store, and where its metrics are."""

from __future__ import annotations

import time

from serving.store.connection import Connection

REPLICA_SECONDS = 15.0
"""A replica that has not reported for this long counts as gone."""


class Replicas:
    """What replicas say of themselves."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._key = connection.control_key("replicas")

    def report(self, replica: str, revision: int, address: str = "") -> None:
        """Say that a replica lives and has seen `revision`.

        Args:
            address: ``host:port`` of its metrics, empty where it has none.
        """
        with self._connection.store_errors:
            self._connection.client.hset(self._key, replica, f"{revision}:{time.time()}:{address}")

    def retire(self, replica: str) -> None:
        """Forget a replica, for it ends."""
        with self._connection.store_errors:
            self._connection.client.hdel(self._key, replica)

    def revisions(self) -> dict[str, int]:
        """Revision seen by each replica that reported lately."""
        return {name: revision for name, (revision, _) in self._reported().items()}

    def addresses(self) -> dict[str, str]:
        """``host:port`` of the metrics of each replica that reported lately and has some."""
        return {name: address for name, (_, address) in self._reported().items() if address}

    def wait(self, revision: int, timeout: float) -> bool:
        """Wait until every live replica has seen `revision`; False when time ran out."""
        deadline = time.monotonic() + timeout
        while any(seen < revision for seen in self.revisions().values()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _reported(self) -> dict[str, tuple[int, str]]:
        with self._connection.store_errors:
            rows = self._connection.client.hgetall(self._key)
        found = {}
        for name, value in rows.items():
            revision, when, *address = value.decode().split(":", 2)
            if time.time() - float(when) < REPLICA_SECONDS:
                found[name.decode()] = (int(revision), "".join(address))
        return found
