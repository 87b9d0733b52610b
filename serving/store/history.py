"""The history of each task and of the API keys: who changed what, and when."""

from __future__ import annotations

import getpass
import socket
from typing import Any

import orjson

from serving.store.connection import Connection

_LATELY, _ALL = 20, 1000


class History:
    """Entries that the scripts wrote, each together with its change."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def of(self, name: str, count: int = 20) -> list[dict[str, Any]]:
        """Up to `count` changes of a task, newest first; of the API keys for the name ``@keys``."""
        with self._connection.store_errors:
            rows = self._connection.client.lrange(self._connection.control_key("history", name), 0, count - 1)
        return [orjson.loads(row) for row in rows]

    def at(self, name: str, revision: int) -> dict[str, Any] | None:
        """The change that led to a revision; of several entries the first. None if it is too long ago."""
        for count in (_LATELY, _ALL):
            found = [row for row in self.of(name, count) if row["revision"] == revision]
            if found:
                return found[-1]
        return None


def whoami() -> str:
    """This process's ``user@host``: the author of a change whose caller gave no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
