"""The connection to one namespace of a server: client, names of keys, scripts, and errors."""

from __future__ import annotations

import uuid
from importlib.resources import files
from typing import Any

import redis

from serving.errors import StoreError, StoreFullError
from serving.store.urls import Client, connect, printable

_SCRIPTS = (
    "adopt", "change", "chunk", "delete", "delta", "keys", "lead", "lease", "place", "report", "reports",
)  # fmt: skip


class Connection:
    """The parts of a store share one connection. Safe to share between threads.

    Attributes:
        where: the server's URL without user, password and query.
        client: redis-py's client.
        store_errors: a context manager that turns redis-py's errors inside its block into `StoreError`.
    """

    def __init__(self, url: str, namespace: str = "default", timeout: float = 5.0) -> None:
        self.where = printable(url)
        self.store_errors = _StoreErrors(self.where)
        self._namespace = namespace
        with self.store_errors:
            self.client: Client = connect(url, timeout)
        self._scripts = {name: self.client.register_script(_source(name)) for name in _SCRIPTS}

    def ping(self) -> None:
        """Raises `StoreError` where the server does not answer."""
        with self.store_errors:
            self.client.ping()

    def warnings(self) -> list[str]:
        """Settings of the server that endanger deltas, in words. Empty where the server does not tell its settings."""
        try:
            memory = self.client.config_get("maxmemory*")
        except redis.RedisError:
            return []
        policy, limit = memory.get("maxmemory-policy", "noeviction"), int(memory.get("maxmemory", 0))
        if limit and policy != "noeviction":
            return [f"the store at {self.where} evicts keys when full (maxmemory-policy {policy}); set noeviction"]
        return []

    def close(self) -> None:
        self.client.close()

    def run(self, script: str, keys: list[str], *arguments: str | float | bytes) -> Any:
        """Run a script of the folder ``lua``; returns its answer as redis-py gives it."""
        with self.store_errors:
            return self._scripts[script](keys=keys, args=arguments)

    def control_key(self, *parts: str) -> str:
        """A key in the hash slot of all control keys, which the scripts change."""
        return ":".join((f"ken:{{{self._namespace}}}", *parts))

    def record_keys(self, name: str) -> list[str]:
        """The keys that `record.lua` writes: the history of a task (or ``@keys``), events, revision, marks, and one of
        this change alone. redis-py sends a change again whose answer was lost; by its own key it is made once."""
        own = self.control_key("made", uuid.uuid4().hex)
        return [self.control_key("history", name), *map(self.control_key, ("events", "revision", "marks")), own]

    def digest_key(self, kind: str, digest: str, *parts: str) -> str:
        """A key in the digest's own hash slot.

        Args:
            kind: ``delta``, ``blob``, ``parts`` or ``own-parts``.
        """
        return ":".join((f"ken:{self._namespace}:{kind}:{{{digest}}}", *parts))

    def digest_keys(self, kind: str) -> str:
        """The pattern that finds the keys of one kind, whatever their digest."""
        return f"ken:{self._namespace}:{kind}:*"


def _source(script: str) -> str:
    """A script with `record.lua` in front of it, since the server's Lua cannot include a file."""
    folder = files("serving.store").joinpath("lua")
    return "\n".join(folder.joinpath(f"{name}.lua").read_text() for name in ("record", script))


class _StoreErrors:
    """Has no state, so that blocks may be nested and one instance serves all threads."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError):
            raise StoreError(f"the store at {self._where} refuses these credentials: {error}") from None
        if isinstance(error, redis.ConnectionError | redis.TimeoutError):
            raise StoreError(f"the store at {self._where} does not answer: {error}") from error
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            raise StoreFullError(
                f"the store at {self._where} is full and takes no change: delete versions with `ken rm` and free their "
                "bytes with `ken gc`, or raise the store's maxmemory; then try again"
            ) from error
        if isinstance(error, redis.RedisError | redis.exceptions.RedisClusterException):
            raise StoreError(f"the store at {self._where} answered: {error}") from error
