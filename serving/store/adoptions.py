"""Adoptions: a person's word that what the store holds now is right, whatever replicas keep of an earlier history."""

from __future__ import annotations

import uuid

from serving.errors import ConflictError
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

    def add(self, who: str | None = None, keeps: str | None = None) -> int:
        """Confirm what the store holds, in place of each history that a replica reports to keep.

        An adoption names the histories that it ends. So a store that was adopted once does not replace the tasks of
        other servers that are pointed at it by mistake.

        Args:
            keeps: the epoch of a history that is kept by a replica which may not have reported that yet.

        Returns:
            The revision after this change.

        Raises:
            ConflictError: no replica keeps another history, or none has noticed yet that it does.
        """
        ended = {report.keeps for report in self._replicas.reports().values() if report.keeps is not None}
        if keeps is not None:
            ended.add(keeps)
        if not ended:
            raise ConflictError(
                "no running replica keeps the tasks of another history, so there is nothing to end. If the store was "
                "emptied or restored just now, try again in some seconds: replicas notice it within a second or two"
            )
        ids = [adoption(uuid.uuid4().hex, epoch) for epoch in sorted(ended)]
        keys = [self._connection.control_key("adoptions"), *self._connection.record_keys(STORE_ADOPTED)]
        return int(self._connection.run("adopt", keys, STORE_ADOPTED, who or whoami(), *ids))


def adoption(id: str, epoch: str) -> str:
    """How an adoption is kept: its id, and the epoch of the history that it ends, see `Lineage`."""
    return f"{id} {epoch}"
