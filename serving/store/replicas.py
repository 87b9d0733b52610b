"""Which replicas live, how far each has followed the store, and where its metrics are."""

from __future__ import annotations

import time

from serving.store.connected import Connected

REPLICA_SECONDS = 15.0
"""A replica that has not reported for this long counts as gone."""


class Replicas(Connected):
    """What replicas say of themselves."""

    def report(self, replica: str, revision: int, address: str = "") -> None:
        """Say that a replica lives and has seen `revision`.

        Args:
            address: ``host:port`` of its metrics, empty where it has none.
        """
        with self._with:
            self._client.hset(self._control("replicas"), replica, f"{revision}:{time.time()}:{address}")

    def retire(self, replica: str) -> None:
        with self._with:
            self._client.hdel(self._control("replicas"), replica)

    def replicas(self) -> dict[str, int]:
        """Revision seen by each replica that reported lately."""
        return {name: revision for name, (revision, _) in self._reported().items()}

    def addresses(self) -> dict[str, str]:
        """``host:port`` of the metrics of each replica that reported lately and has some."""
        return {name: address for name, (_, address) in self._reported().items() if address}

    def wait(self, revision: int, timeout: float) -> bool:
        """Wait until every live replica has seen `revision`; False when time ran out."""
        deadline = time.monotonic() + timeout
        while any(seen < revision for seen in self.replicas().values()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _reported(self) -> dict[str, tuple[int, str]]:
        with self._with:
            rows = self._client.hgetall(self._control("replicas"))
        found = {}
        for name, value in rows.items():
            revision, when, *address = value.decode().split(":", 2)
            if time.time() - float(when) < REPLICA_SECONDS:
                found[name.decode()] = (int(revision), "".join(address))
        return found
