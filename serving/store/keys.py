"""Records of API keys. The store keeps them as they come; `serving.security.keys` decides what a key allows."""

from __future__ import annotations

from typing import Any

import orjson

from serving.errors import UnknownKeyError
from serving.names import check_name
from serving.store.connection import Connection
from serving.store.history import whoami

KEYS_CHANGED = "@keys"
"""The name that history and events give a change of keys. No task can have this name."""


class Keys:
    """Records by id. A change gets a revision as a task's change does, so `Replicas.wait` can wait for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> dict[str, dict[str, Any]]:
        """All records by id."""
        with self._connection.store_errors:
            return read_keys(self._connection.client.hgetall(self._connection.control_key("keys")))

    def locked(self) -> bool:
        """Whether the store, or a replica that said so, ever had a key. From then on servers ask for one."""
        with self._connection.store_errors:
            return bool(self._connection.client.exists(self._connection.control_key("locked")))

    def lock(self, who: str | None = None) -> int:
        """Record for good that there was a key, whatever is done to keys later; returns the revision."""
        return self._change("lock", "", "", who)

    def put(self, id: str, record: dict[str, Any], who: str | None = None) -> int:
        """Add or replace a record, and `lock`; returns the revision.

        Args:
            record: anything JSON can hold.
        """
        return self._change("put-key", check_name("key", id), orjson.dumps(record).decode(), who)

    def drop(self, id: str, who: str | None = None) -> int:
        """Delete a record; returns the revision.

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
    """Records by id, from the fields of the hash that holds them."""
    return {id.decode(): orjson.loads(record) for id, record in rows.items()}
