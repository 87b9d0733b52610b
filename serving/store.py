"""The delta store: deltas in chunks, tasks with aliases and history, and a stream of changes.

Keys, for namespace ``ns`` (control keys share one hash tag, so one Lua script may touch them all even in a
cluster; blobs are tagged by digest, so they spread):

- ``ken:{ns}:revision``             counts every change
- ``ken:{ns}:tasks``                names, a set
- ``ken:{ns}:task:<name>``          hash: alias -> digest, and ``@revision``
- ``ken:{ns}:versions:<name>``      digests ever published to the task, a sorted set by revision
- ``ken:{ns}:stack:<name>:<alias>`` digests the alias pointed at, for rollback
- ``ken:{ns}:history:<name>``       who did what when, a capped list of JSON
- ``ken:{ns}:events``               a capped stream (task, revision): a hint that something changed
- ``ken:{ns}:upload:<digest>``      leases of uploads in progress, or of ``gc``
- ``ken:{ns}:replicas``             hash: replica -> revision it has seen, and when
- ``ken:ns:delta:{<digest>}``       hash: manifest, size, count
- ``ken:ns:blob:{<digest>}:<i>``    4 MiB chunks
"""

from __future__ import annotations

import getpass
import hashlib
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import redis

from serving.connection import Client, connect, printable
from serving.errors import ConflictError, InvalidInputError, StoreError, UnknownTaskError

if TYPE_CHECKING:
    from ken_core import DeltaFile

CHUNK_BYTES = 4 << 20
LEASE_SECONDS = 600.0
REPLICA_SECONDS = 15.0
_REVISION = "@revision"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Task:
    """A task as the store knows it; `aliases` maps alias to digest."""

    name: str
    revision: int
    aliases: dict[str, str]
    versions: tuple[str, ...]
    """Digests, oldest first."""


@dataclass(frozen=True)
class Table:
    """All tasks at one revision of the store."""

    revision: int
    tasks: dict[str, Task]


@dataclass(frozen=True)
class Event:
    id: str
    task: str
    revision: int


def check_name(kind: str, name: str) -> str:
    """Return a task or alias name that is fit for a key and a URL.

    Raises:
        InvalidInputError: letters, digits, ``.``, ``_``, ``-`` only, at most 128, the first a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{kind} {name!r} is not usable: expected 1 to 128 letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    return name


def check_digest(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InvalidInputError(f"{digest[:80]!r} is no digest: expected 64 hexadecimal digits in lower case")
    return digest


class Store:
    """One namespace of a Redis or Valkey. Safe to share between threads.

    Every method raises `StoreError` where the server cannot be reached.
    """

    def __init__(self, url: str, namespace: str = "default", timeout: float = 5.0) -> None:
        self.where = printable(url)
        self._namespace = namespace
        self._with = _Reporting(self.where)
        with self._with:
            self._client: Client = connect(url, timeout)
        self._change = self._script("change")
        self._lease = self._script("lease")

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

    # Deltas

    def put(self, file: DeltaFile, progress: Callable[[int], None] = lambda size: None) -> None:
        """Upload a delta under a lease; complete only once its manifest is there. Repeatable.

        Args:
            progress: called with the bytes of each chunk as it is written.
        """
        with self._with, self._leased(file.digest) as token:
            count = 0
            sha = hashlib.sha256()
            with file.path.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    self._lease_change("take", file.digest, token)
                    self._client.set(self._blob(file.digest, count), chunk)
                    sha.update(chunk)
                    count += 1
                    progress(len(chunk))
            if sha.hexdigest() != file.digest:
                raise ConflictError(f"{file.path} changed since it was opened; open it again")
            manifest = orjson.dumps(file.manifest.model_dump(mode="json"))
            described = {"manifest": manifest, "size": file.size, "count": count}
            self._client.hset(self._delta(file.digest), mapping=described)

    def has(self, digest: str) -> bool:
        with self._with:
            return bool(self._client.exists(self._delta(digest)))

    def fetch(self, digest: str, path: Path) -> None:
        """Write a delta to `path`; the file appears only once its sha256 was found right.

        Raises:
            StoreError: the store does not hold it whole.
        """
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        with self._with:
            size, count = self._client.hmget(self._delta(digest), "size", "count")
        if size is None or count is None:
            raise StoreError(f"the store at {self.where} does not hold delta {digest}; publish it again")
        sha = hashlib.sha256()
        try:
            with partial.open("wb") as out:
                for i in range(int(count)):
                    with self._with:
                        chunk = self._client.get(self._blob(digest, i))
                    if chunk is None or out.tell() + len(chunk) > int(size):
                        break
                    sha.update(chunk)
                    out.write(chunk)
            if sha.hexdigest() != digest:
                raise StoreError(f"delta {digest} in the store at {self.where} is damaged; publish it again")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """A stored delta's manifest, None where the store does not hold it."""
        with self._with:
            raw = self._client.hget(self._delta(digest), "manifest")
        return orjson.loads(raw) if raw is not None else None

    def size(self, digest: str) -> int | None:
        with self._with:
            raw = self._client.hget(self._delta(digest), "size")
        return int(raw) if raw is not None else None

    # Tasks

    def publish(self, task: str, file: DeltaFile, alias: str = "live", who: str | None = None) -> int:
        """Upload a delta, make it a version of the task and point the alias at it: all of it or nothing.

        Returns:
            The store's revision after the change.
        """
        check_name("task", task)
        check_name("alias", alias)
        with self._leased(file.digest):
            self.put(file)
            return self._changed("publish", task, alias, file.digest, who)

    def promote(self, task: str, digest: str, alias: str = "live", who: str | None = None) -> int:
        """Point an alias at a digest already published to this task; returns the revision.

        Raises:
            UnknownTaskError: no such task, or the digest is none of its versions.
        """
        check_name("alias", alias)
        return self._changed("promote", check_name("task", task), alias, self._complete(task, digest), who)

    def rollback(self, task: str, alias: str = "live", who: str | None = None) -> int:
        """Point an alias at what it pointed at before; returns the revision.

        Raises:
            UnknownTaskError: no such task or alias.
            ConflictError: nothing before the current version.
        """
        return self._changed("rollback", check_name("task", task), check_name("alias", alias), "", who)

    def delete(self, task: str, who: str | None = None) -> int:
        """Forget a task, its aliases and versions; `gc` frees the blobs. Returns the revision."""
        return self._changed("delete", check_name("task", task), "", "", who)

    def task(self, name: str) -> Task | None:
        with self._with:
            pipe = self._client.pipeline(transaction=False)
            pipe.hgetall(self._control("task", name))
            pipe.zrange(self._control("versions", name), 0, -1)
            fields, versions = pipe.execute()
        return _task(name, fields, versions) if fields else None

    def table(self) -> Table:
        """All tasks, read again until no change came in between."""
        for _ in range(100):
            with self._with:
                before = self.revision()
                names = sorted(n.decode() for n in self._client.smembers(self._control("tasks")))
                pipe = self._client.pipeline(transaction=False)
                for name in names:
                    pipe.hgetall(self._control("task", name))
                    pipe.zrange(self._control("versions", name), 0, -1)
                answers = pipe.execute() if names else []
                if self.revision() == before:
                    found = zip(names, answers[::2], answers[1::2], strict=True)
                    return Table(before, {n: _task(n, f, v) for n, f, v in found if f})
        raise StoreError(f"the store at {self.where} changes faster than it can be read")

    def revision(self) -> int:
        with self._with:
            return int(self._client.get(self._control("revision")) or 0)

    def history(self, task: str, count: int = 20) -> list[dict[str, Any]]:
        """The newest changes of a task, newest first."""
        with self._with:
            rows = self._client.lrange(self._control("history", task), 0, count - 1)
        return [orjson.loads(row) for row in rows]

    # Changes and replicas

    def events(self, after: str, block_seconds: float) -> list[Event]:
        """Changes later than the stream entry `after` (``$`` for new ones), waiting up to `block_seconds`."""
        with self._with:
            answer = self._client.xread({self._control("events"): after}, count=100, block=int(block_seconds * 1000))
        entries = answer.values() if isinstance(answer, dict) else (rows for _, rows in answer)
        flat = [e for rows in entries for e in (rows[0] if isinstance(answer, dict) else rows)]
        return [Event(i.decode(), f[b"task"].decode(), int(f[b"revision"])) for i, f in flat]

    def last_event(self) -> str:
        """The id of the newest stream entry."""
        with self._with:
            newest = self._client.xrevrange(self._control("events"), count=1)
        return newest[0][0].decode() if newest else "0"

    def report(self, replica: str, revision: int) -> None:
        """Say that a replica has seen `revision`."""
        with self._with:
            self._client.hset(self._control("replicas"), replica, f"{revision}:{time.time()}")

    def retire(self, replica: str) -> None:
        with self._with:
            self._client.hdel(self._control("replicas"), replica)

    def replicas(self) -> dict[str, int]:
        """Revision seen by each replica that reported lately."""
        with self._with:
            rows = self._client.hgetall(self._control("replicas"))
        seen = {}
        for name, value in rows.items():
            revision, _, when = value.decode().partition(":")
            if time.time() - float(when) < REPLICA_SECONDS:
                seen[name.decode()] = int(revision)
        return seen

    def wait(self, revision: int, timeout: float) -> bool:
        """Wait until every live replica has seen `revision`; False when time ran out."""
        deadline = time.monotonic() + timeout
        while any(seen < revision for seen in self.replicas().values()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    # Garbage

    def gc(self) -> tuple[int, int]:
        """Delete deltas that no task has as a version and no upload holds.

        Returns:
            How many deltas were deleted, and their bytes.
        """
        freed = count = 0
        for digest in self._digests():
            with self._with:
                if not self._lease_change("take", digest, "gc"):
                    continue
                try:
                    if self._referenced(digest):
                        continue
                    size = self.size(digest)
                    freed += size or 0
                    count += 1
                    self._client.delete(self._delta(digest))
                    for key in self._client.scan_iter(f"{self._blob_prefix(digest)}:*", count=1000):
                        self._client.delete(key)
                finally:
                    self._lease_change("drop", digest, "gc")
        return count, freed

    def _digests(self) -> set[str]:
        with self._with:
            found = set()
            for pattern in (f"ken:{self._namespace}:delta:*", f"ken:{self._namespace}:blob:*"):
                for key in self._client.scan_iter(pattern, count=1000):
                    found |= set(re.findall(r"\{([0-9a-f]{64})\}", key.decode()))
            return found

    def _referenced(self, digest: str) -> bool:
        names = [n.decode() for n in self._client.smembers(self._control("tasks"))]
        return any(self._client.zscore(self._control("versions", n), digest) is not None for n in names)

    def _complete(self, task: str, digest: str) -> str:
        if not self.has(check_digest(digest)):
            raise UnknownTaskError(f"task {task!r}: the store does not hold a delta {digest}; publish it first")
        return digest

    def _changed(self, action: str, task: str, alias: str, digest: str, who: str | None) -> int:
        keys = [
            self._control("task", task),
            self._control("versions", task),
            self._control("stack", task, alias),
            self._control("history", task),
            self._control("tasks"),
            self._control("events"),
            self._control("revision"),
        ]
        with self._with:
            answer = self._change(keys=keys, args=[action, task, alias, digest, who or _whoami()])
        match answer:
            case [b"ok", revision]:
                return int(revision)
            case [b"no-task", *_]:
                raise UnknownTaskError(f"there is no task {task!r}; see `ken tasks`")
            case [b"no-version", *_]:
                raise UnknownTaskError(f"{digest} is no version of task {task!r}; publish it first")
            case [b"no-alias", *_]:
                raise UnknownTaskError(f"task {task!r} has no alias {alias!r}")
            case _:
                raise ConflictError(f"alias {alias!r} of task {task!r} has no earlier version to return to")

    @contextmanager
    def _leased(self, digest: str) -> Iterator[str]:
        """Hold off `gc` for one digest; many uploads may hold it at once."""
        token = uuid.uuid4().hex
        with self._with:
            deadline = time.monotonic() + LEASE_SECONDS
            while not self._lease_change("take", digest, token):
                if time.monotonic() > deadline:
                    raise StoreError(f"delta {digest} is being collected by gc; try again")
                time.sleep(0.05)
        try:
            yield token
        finally:
            with self._with:
                self._lease_change("drop", digest, token)

    def _lease_change(self, action: str, digest: str, token: str) -> bool:
        key = self._control("upload", digest)
        return bool(self._lease(keys=[key], args=[action, token, LEASE_SECONDS]))

    def _control(self, *parts: str) -> str:
        return ":".join((f"ken:{{{self._namespace}}}", *parts))

    def _delta(self, digest: str) -> str:
        return f"ken:{self._namespace}:delta:{{{digest}}}"

    def _blob_prefix(self, digest: str) -> str:
        return f"ken:{self._namespace}:blob:{{{digest}}}"

    def _blob(self, digest: str, i: int) -> str:
        return f"{self._blob_prefix(digest)}:{i}"

    def _script(self, name: str) -> Callable[..., Any]:
        return self._client.register_script(files("serving").joinpath(f"lua/{name}.lua").read_text())  # type: ignore[no-any-return]


def _task(name: str, fields: dict[bytes, bytes], versions: list[bytes]) -> Task:
    plain = {k.decode(): v.decode() for k, v in fields.items()}
    revision = int(plain.pop(_REVISION, 0))
    return Task(name, revision, plain, tuple(v.decode() for v in versions))


def _whoami() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


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
