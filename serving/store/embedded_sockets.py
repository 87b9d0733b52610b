"""Where the socket of an embedded store is: in a private folder for temporary files. The store's folder says it.

The data directory's own path could be too long for a socket.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serving.errors import StartError

_LONGEST_PATH = 103
"""Bytes of a socket's path: 107 on Linux, 103 on macOS."""
_RECORD = "socket"
"""The file with the path of the running server's socket."""


def possible(folder: Path) -> list[Path]:
    """Where the socket of a store's server may be, as its folder tells and as the path of the folder says.

    Another store's server may be there, if the folder is a copy or was moved.
    """
    recorded = []
    with suppress(FileNotFoundError):
        recorded.append(Path((folder / _RECORD).read_text()))
    places = (place for place in _places() if _is_private(place))
    return recorded + [socket for place in places for socket in sorted(place.glob(f"{_name(folder)}*.sock"))]


def free(folder: Path, taken: Callable[[Path], bool]) -> Path:
    """A path for the socket of a store's new server. Nothing is there.

    Args:
        taken: whether a server is behind a socket. If the store that was in this folder has been moved, its server
            keeps its socket.

    Raises:
        StartError: there is no place that is private to this user.
    """
    name = _name(folder)
    place = next(place for place in _places() if _fits(place / f"{name}-99.sock"))
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StartError(
            f"{place} cannot be made ({error.strerror}); set TMPDIR to a folder with a short path"
        ) from None
    if not _is_private(place):
        raise StartError(f"{place} is not private to this user; remove it, or set TMPDIR to another folder")
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(1)))
    socket = next(path for name in names if not taken(path := place / f"{name}.sock"))
    socket.unlink(missing_ok=True)
    return socket


def record(folder: Path, socket: Path) -> None:
    """Tell users of a store with other folders for temporary files where its server's socket is."""
    (folder / _RECORD).write_text(str(socket))


def forget(folder: Path, socket: Path) -> None:
    """Remove the record of a server that has ended. If the folder has been replaced, the record is another server's."""
    with suppress(OSError):
        if not socket.exists() and (folder / _RECORD).read_text() == str(socket):
            (folder / _RECORD).unlink()


def _name(folder: Path) -> str:
    return hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def _places() -> list[Path]:
    parents = (tempfile.gettempdir(), "/tmp")  # noqa: S108 - a private folder of it
    return [Path(parent) / f"ken-{os.getuid()}" for parent in dict.fromkeys(parents)]


def _is_private(place: Path) -> bool:
    try:
        status = place.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o077


def _fits(socket: Path) -> bool:
    return len(os.fsencode(socket)) <= _LONGEST_PATH
