"""Adoptions: a person's word that what the store holds now is right, whatever replicas remember of an earlier store."""

from __future__ import annotations

import uuid

from serving.store.connection import Connection
from serving.store.history import whoami

STORE_ADOPTED = "@store"
"""The name that history and events give an adoption. No task can have this name."""


class Adoptions:
    """Replicas that keep to an earlier store's tasks take over everything from a store that is adopted."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, who: str | None = None) -> int:
        """Confirm what the store holds; returns the revision after this change."""
        keys = [self._connection.control_key("adoptions"), *self._connection.record_keys(STORE_ADOPTED)]
        return int(self._connection.run("adopt", keys, STORE_ADOPTED, uuid.uuid4().hex, who or whoami()))
