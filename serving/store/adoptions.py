"""Adoptions: a person's word that what the store holds now is right, whatever replicas keep of an earlier history."""

from __future__ import annotations

import uuid

from serving.store.connection import Connection
from serving.store.history import whoami
from serving.store.replicas import Replicas

STORE_ADOPTED = "@store"
"""The name that history and events give an adoption. No task can have this name."""


class Adoptions:
    """Replicas that keep to an earlier history's tasks take over everything from a store that is adopted."""

    def __init__(self, connection: Connection, replicas: Replicas) -> None:
        self._connection = connection
        self._replicas = replicas

    def add(self, who: str | None = None) -> int:
        """Confirm what the store holds, in place of each history that a replica reports to keep.

        An adoption names the histories that it ends. So a store that was adopted once does not replace the tasks of
        other servers that are pointed at it by mistake.

        Returns:
            The revision after this change.
        """
        ended = {report.keeps for report in self._replicas.reports().values() if report.keeps is not None}
        ids = [adoption(uuid.uuid4().hex, epoch) for epoch in sorted(ended)]
        keys = [self._connection.control_key("adoptions"), *self._connection.record_keys(STORE_ADOPTED)]
        return int(self._connection.run("adopt", keys, STORE_ADOPTED, who or whoami(), *ids))


def adoption(id: str, epoch: str) -> str:
    """How an adoption is kept: its id, and the epoch of the history that it ends, see `Lineage`."""
    return f"{id} {epoch}"
