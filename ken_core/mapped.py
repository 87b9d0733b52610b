"""Noticing when a checkpoint's mapped files no longer hold what they held when the checkpoint was opened.

A memory map shows what is written into its file later, and reading past the end of a file that was cut ends the
process. Renaming another file over a mapped one is harmless: the map keeps the old file. So the files that were opened
are kept open, and are looked at before and after tensors are read: their size, the time of the last write, and the time
of the last change of anything. Programs can set the first of these times but not the second.

This does not notice a damaged disk, writes that a network file system reports late, or a process that goes on writing
through a shared map of its own, which moves the times only with the first write after each flush. Hashing the tensors
again finds these too.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ken_core.errors import CheckpointChangedError

_log = logging.getLogger(__name__)

Look = Callable[[], Sequence[str]]
"""Hashes the tensors again and returns the names of those that differ from when the checkpoint was opened."""


@dataclass(frozen=True)
class _State:
    device: int
    inode: int
    size: int
    written_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> _State:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def is_unwritten_since(self, before: _State) -> bool:
        """Whether size and time of writing are the same. Renaming, linking or a new owner move `changed_ns` alone."""
        return (self.size, self.written_ns) == (before.size, before.written_ns)


class MappedFiles:
    """Files of weights, kept open. Where there are none (a model that is in memory only), nothing ever changes.

    Args:
        paths: the files. They are opened at once, before anything is mapped from them.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._paths = tuple(paths)
        self._opened: list[int] = []
        weakref.finalize(self, _close, self._opened)
        self._opened.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self._paths)
        self._accepted = self._at_first = self.states()
        self._refused: tuple[_State, ...] | None = None
        self._lock = threading.RLock()
        self.when_read: Callable[[], None] = _nothing
        """Called whenever tensors were read."""
        self.trouble: str | None = None
        """Why nothing may be read from the files at present; None while they are as the last check accepted them."""

    def states(self) -> tuple[_State, ...]:
        """The files' present states. If two results are equal, nothing was written between them."""
        return tuple(_State.of(os.fstat(opened)) for opened in self._opened)

    @property
    def cut(self) -> bool:
        """Whether a file is shorter than when it was opened, so that reading its map would end the process."""
        return any(now.size < first.size for now, first in zip(self.states(), self._at_first, strict=True))

    def check_since_opened(self) -> None:
        """Raise `CheckpointChangedError` if a file was written to or replaced since it was opened."""
        found = tuple(_State.of(path.stat()) if path.exists() else None for path in self._paths)
        if found != self._at_first:
            raise CheckpointChangedError(
                f"{self._names} changed while it was being opened; open the checkpoint again when it is complete"
            )

    def check(self, look: Look | None) -> None:
        """Raise `CheckpointChangedError` unless the files hold what they held when they were opened.

        Args:
            look: called once for each change of the files that is noticed, so that a file that was merely touched is
                accepted. None if the tensors were not hashed before: then every change is refused, except one of a
                file's name, owner or mode.
        """
        with self._lock:
            found = self.states()
            if found != self._refused:
                if found == self._accepted:
                    return
                self._judge(found, look)
            if self.trouble is not None:
                raise CheckpointChangedError(self.trouble)

    def refuse(self, names: Sequence[str]) -> None:
        """Make `check` fail from now on, until the files change again, because these tensors hold other values."""
        with self._lock:
            found = self.states()
            if found != self._refused or self.trouble is None:
                self._refuse(found, _other_values(names))

    def _judge(self, found: tuple[_State, ...], look: Look | None) -> None:
        if self.cut:
            self._refuse(found, "it is shorter than it was")
        elif look is None and all(map(_State.is_unwritten_since, found, self._accepted)):
            self._accepted, self._refused, self.trouble = found, None, None
        elif look is None:
            self._refuse(found, "its tensors had not been hashed before, so they cannot be compared")
        elif names := look():
            self._refuse(found, _other_values(names))
        elif self.states() != found:
            self._refuse(found, "it is still being written to")
        else:
            _log.warning("%s was touched, but all its tensors hold the same values as before; going on", self._names)
            self._accepted, self._refused, self.trouble = found, None, None

    def _refuse(self, found: tuple[_State, ...], reason: str) -> None:
        self._refused = found
        self.trouble = (
            f"{self._names} was written to after it was opened: {reason}. Nothing more is read from it; put its old "
            "content back, or open the checkpoint again (restart the server). To change such a file, rename a new "
            "one over it"
        )
        _log.error("%s", self.trouble)

    @property
    def _names(self) -> str:
        return ", ".join(map(str, self._paths))


def _other_values(names: Sequence[str]) -> str:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{others} hold other values"


def _nothing() -> None:
    pass


def _close(opened: Iterable[int]) -> None:
    for one in opened:
        os.close(one)
