"""Who did what when: the newest changes of each task, and of the keys."""

from __future__ import annotations

import getpass
import socket
from typing import Any

import orjson

from serving.store.connection import Connection


class History:
    """Reads what the scripts recorded."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def of(self, name: str, count: int = 20) -> list[dict[str, Any]]:
        """The newest changes of a task, or of the keys (``@keys``), newest first."""
        with self._connection.store_errors:
            rows = self._connection.client.lrange(self._connection.control_key("history", name), 0, count - 1)
        return [orjson.loads(row) for row in rows]


def whoami() -> str:
    """User and host, for the history of changes nobody put a name to."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
