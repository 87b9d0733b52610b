"""Records of API keys, kept as others made them: who may do what is decided elsewhere."""

from __future__ import annotations

from typing import Any

import orjson

from serving.errors import UnknownKeyError
from serving.names import check_name
from serving.store.connection import Connection
from serving.store.history import whoami

KEYS_CHANGED = "@keys"
"""What history and events call a change of keys; no task can have this name."""


class Keys:
    """Records by id. A change counts as one of a task does, so replicas see it and `Replicas.wait` waits for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> dict[str, dict[str, Any]]:
        """Every record, by id."""
        with self._connection.store_errors:
            return read_keys(self._connection.client.hgetall(self._connection.control_key("keys")))

    def locked(self) -> bool:
        """Whether there ever was a key, here or where a replica read one: from then on servers stay locked."""
        with self._connection.store_errors:
            return bool(self._connection.client.exists(self._connection.control_key("locked")))

    def lock(self, who: str | None = None) -> int:
        """Remember that there was a key; returns the revision. Nothing that is done to keys takes it back."""
        return self._change("lock", "", "", who)

    def put(self, id: str, record: dict[str, Any], who: str | None = None) -> int:
        """Add or replace a record, anything JSON can hold, and `lock`; returns the revision."""
        return self._change("put-key", check_name("key", id), orjson.dumps(record).decode(), who)

    def drop(self, id: str, who: str | None = None) -> int:
        """Forget a record; returns the revision.

        Raises:
            UnknownKeyError: no key has this id.
        """
        return self._change("drop-key", check_name("key", id), "", who)

    def _change(self, action: str, id: str, record: str, who: str | None) -> int:
        control = self._connection.control_key
        keys = [control("keys"), control("locked"), *self._connection.record_keys(KEYS_CHANGED)]
        match self._connection.run("keys", keys, action, KEYS_CHANGED, id, record, who or whoami()):
            case [b"ok", revision]:
                return int(revision)
        raise UnknownKeyError(f"there is no key {id!r}; see `ken keys list`")


def read_keys(rows: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Records by id, from what the store holds."""
    return {id.decode(): orjson.loads(record) for id, record in rows.items()}
