"""One namespace of a server: its client, the names of its keys, its scripts, and its errors as ours."""

from __future__ import annotations

import getpass
import socket
from importlib.resources import files
from typing import Any

import redis

from serving.errors import StoreError
from serving.store.connection import Client, connect, printable

_SCRIPTS = ("change", "chunk", "delete", "keys", "lease")


class Connected:
    """What every part of the store stands on."""

    def __init__(self, url: str, namespace: str = "default", timeout: float = 5.0) -> None:
        self.where = printable(url)
        self._namespace = namespace
        self._with = _Reporting(self.where)
        with self._with:
            self._client: Client = connect(url, timeout)
        self._scripts = {name: self._client.register_script(_source(name)) for name in _SCRIPTS}

    def ping(self) -> None:
        with self._with:
            self._client.ping()

    def warnings(self) -> list[str]:
        """What about the server's own settings endangers deltas, as far as it tells."""
        try:
            memory = self._client.config_get("maxmemory*")
        except redis.RedisError:
            return []
        policy, limit = memory.get("maxmemory-policy", "noeviction"), int(memory.get("maxmemory", 0))
        if limit and policy != "noeviction":
            return [f"the store at {self.where} evicts keys when full (maxmemory-policy {policy}); set noeviction"]
        return []

    def close(self) -> None:
        self._client.close()

    def _run(self, script: str, keys: list[str], *arguments: str | float | bytes) -> Any:
        with self._with:
            return self._scripts[script](keys=keys, args=arguments)

    def _control(self, *parts: str) -> str:
        return ":".join((f"ken:{{{self._namespace}}}", *parts))

    def _delta(self, digest: str) -> str:
        return f"ken:{self._namespace}:delta:{{{digest}}}"

    def _parts(self, digest: str) -> str:
        return f"ken:{self._namespace}:parts:{{{digest}}}"

    def _blob_prefix(self, digest: str) -> str:
        return f"ken:{self._namespace}:blob:{{{digest}}}"

    def _blob(self, digest: str, i: int) -> str:
        return f"{self._blob_prefix(digest)}:{i}"


def whoami() -> str:
    """User and host, for the history of changes nobody put a name to."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _source(script: str) -> str:
    """A script behind what all of them record a change with; the server's Lua has no way to include a file."""
    folder = files("serving.store").joinpath("lua")
    return "\n".join(folder.joinpath(f"{name}.lua").read_text() for name in ("record", script))


class _Reporting:
    """Turn redis-py's errors into ours. Reentrant and stateless, so one instance serves all threads."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError):
            raise StoreError(f"the store at {self._where} refuses these credentials: {error}") from None
        if isinstance(error, redis.ConnectionError | redis.TimeoutError):
            raise StoreError(f"the store at {self._where} does not answer: {error}") from error
        if isinstance(error, redis.RedisError | redis.exceptions.RedisClusterException):
            raise StoreError(f"the store at {self._where} answered: {error}") from error
