"""The live replicas: which revision each has seen, and where its metrics are."""

from __future__ import annotations

import time

from serving.store.connection import Connection

REPLICA_SECONDS = 15.0
"""A replica that has not reported for this long counts as gone."""


class Replicas:
    """What replicas report about themselves."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._key = connection.control_key("replicas")

    def report(self, replica: str, revision: int, address: str = "") -> None:
        """Record that a replica is alive and has seen `revision`.

        Args:
            address: ``host:port`` of the replica's metrics; empty where there are none.
        """
        with self._connection.store_errors:
            self._connection.client.hset(self._key, replica, f"{revision}:{time.time()}:{address}")

    def retire(self, replica: str) -> None:
        """Take a replica off the list."""
        with self._connection.store_errors:
            self._connection.client.hdel(self._key, replica)

    def revisions(self) -> dict[str, int]:
        """The revision each live replica has seen, by the replica's name."""
        return {name: revision for name, (revision, _) in self._reported().items()}

    def addresses(self) -> dict[str, str]:
        """``host:port`` of each live replica's metrics, by the replica's name, of replicas that have metrics."""
        return {name: address for name, (_, address) in self._reported().items() if address}

    def wait(self, revision: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds until every live replica has seen `revision`; False where one has not."""
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
