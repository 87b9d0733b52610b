"""The disk tier: delta files. A file that is absent is fetched from the store; if no disk takes it, it is in memory."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import stat
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from ken_core import DeltaFile, open_file
from ken_core.errors import DeltaFormatError, OutputError
from ken_core.manifest import Manifest
from ken_core.writing import new_file
from serving.errors import NoRoomError, StoreError
from serving.security.signature_file import signature_file, write_signatures
from serving.store import Store
from serving.store.deltas import not_held
from serving.tiers.budget import ByteBudget
from serving.tiers.disk_trouble import DiskTrouble
from serving.tiers.memory_file import MemoryFile
from serving.tiers.memory_room import MemoryRoom
from serving.tiers.signature_check import SignatureCheck

_log = logging.getLogger(__name__)
_DIGEST = re.compile("[0-9a-f]{64}")
_FETCH_SECONDS = 600
"""A younger partial file may belong to another replica's fetch."""
_ROOM_SECONDS = 10.0
"""How long a fetched delta waits for others to leave memory, which they do once they are decoded."""


class DeltaFiles:
    """Delta files on disk, which survive restarts. Threads may share it.

    A delta's file is ``<folder>/<digest>``. Whenever it is opened, its sha256 is compared with its name. While the
    folder takes no files (its disk is full or read-only), fetched deltas are opened from memory and not kept.

    Args:
        budget: bytes of delta files. Signature files (``<digest>.sig``, a few hundred bytes each) do not count.
        store: None: only files that are already in the folder can be opened.
        signed: decides which deltas may be opened; None: all.
        memory_budget: bytes of fetched deltas that are in memory at the same time because the folder takes no files;
            by default as many as `budget`. Further ones wait for them. A delta that is larger is alone in memory.
    """

    def __init__(
        self,
        folder: Path,
        budget: int,
        store: Store | None,
        signed: SignatureCheck | None = None,
        memory_budget: int | None = None,
    ) -> None:
        self.folder = folder
        self._store = store
        self._signed = signed
        self._lock = threading.Lock()
        self._disk = DiskTrouble(folder)
        self._memory = MemoryRoom(budget if memory_budget is None else memory_budget)
        self._held: Counter[str] = Counter()
        self._files: ByteBudget[Path] = ByteBudget(budget, lambda path: self._held[path.name] > 0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in self._complete():
                self._admit(path)
        except OSError as error:
            self._disk.begin(error)

    @property
    def trouble(self) -> str | None:
        """Why the folder does not take fetched deltas at present; None: it takes them, as far as is known."""
        return self._disk.reason

    def takes_deltas(self) -> bool:
        """Whether fetched deltas are kept on disk. If the latest was not, this is tried out every few seconds."""
        return not self._disk.lasts()

    @property
    def nbytes(self) -> int:
        """Bytes of all delta files."""
        return self._files.nbytes

    @contextmanager
    def held(self, digest: str) -> Iterator[None]:
        """Keep a file on disk while it is read."""
        with self._lock:
            self._held[digest] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[digest] -= 1

    def holds(self, digest: str) -> bool:
        return digest in self._files

    def manifest(self, digest: str) -> Manifest | None:
        """What a delta's manifest says on disk, else in the store; None where neither gives one that can be read.

        The delta itself is neither fetched nor compared with its digest, so this is no proof of what it holds.
        """
        path = self.folder / digest
        try:
            if path.is_file():
                return open_file(path, digest).manifest
            told = self._store.deltas.manifest(digest) if self._store else None
            return None if told is None else Manifest.model_validate(told)
        except (OSError, StoreError, DeltaFormatError, ValidationError):
            return None

    def open(self, digest: str) -> tuple[DeltaFile, bool]:
        """Open a delta's file, which is fetched from the store if it is not on disk.

        Returns:
            The file, and whether it was already on disk. A file in memory can be read for as long as it is referred to.

        Raises:
            StoreError: the file is not on disk, and the store does not deliver it.
            NoRoomError: neither the disk nor the memory takes the file.
            DeltaFormatError: the file from the store is no valid delta.
            RefusedDeltaError: deltas must be signed, and no trusted key signed this one.
        """
        path = self.folder / digest
        signatures = self._signed.check(path) if self._signed else ()
        found = self._open_on_disk(path)
        file = found or self._fetch(path)
        if signatures and file.path == path:
            try:
                write_signatures(path, signatures)
            except OutputError as error:  # the store has them too
                _log.warning("the signatures of delta %s cannot be kept beside it: %s", digest, error)
        return file, found is not None

    def _open_on_disk(self, path: Path) -> DeltaFile | None:
        try:
            if not path.is_file():
                return None
            if _sha256(path) != path.name:  # checked before the file's content is used
                _log.warning("delta file %s on disk no longer has the sha256 of its name; fetching it again", path.name)
                return None
            file = open_file(path, path.name)
            with suppress(OSError):  # only the order in which files leave depends on it
                os.utime(path)
        except (DeltaFormatError, OSError) as error:
            _log.warning("delta file %s on disk is damaged (%s); fetching it again", path.name, error)
            return None
        with self._lock:
            self._files.get(path.name)
        return file

    def _fetch(self, path: Path) -> DeltaFile:
        if self._store is None:
            raise FileNotFoundError(path)
        trouble = self.trouble
        if trouble is None:
            try:
                self._store.deltas.fetch(path.name, path)
                with self._lock:
                    self._admit(path)
                return open_file(path, path.name)  # the fetch has compared the digest
            except OSError as error:
                self._disk.begin(error)
                trouble = str(error)
        try:
            return self._fetch_into_memory(self._store, path)
        except OSError as error:
            raise NoRoomError(
                f"delta {path.name} can be kept neither on disk ({self.trouble or trouble}) nor in memory "
                f"({error.strerror or error}); make room on the server's disk"
            ) from error

    def _fetch_into_memory(self, store: Store, path: Path) -> DeltaFile:
        """Fetch a delta into memory, and put it on disk if the disk takes files again."""
        size = store.deltas.size(path.name)
        if size is None:
            raise not_held(path.name, store.connection.where)
        with ExitStack() as memory:
            if not self._memory.take(size, _ROOM_SECONDS):
                raise OSError(
                    errno.ENOMEM, f"deltas that are being loaded take {self._memory.nbytes / 1e6:.1f} MB of it"
                )
            memory.callback(self._memory.give_back, size)
            held = memory.enter_context(closing(MemoryFile(path.name)))
            store.deltas.copy(path.name, held.stream)
            if self._copy_to_disk(held, path, size):
                return open_file(path, path.name)
            file = open_file(held.path, path.name, name=path.name)
            weakref.finalize(file, memory.pop_all().close)
            return file

    def _copy_to_disk(self, memory: MemoryFile, path: Path, size: int) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with new_file(path) as partial:
                shutil.copyfile(memory.path, partial)
            with self._lock:
                self._admit(path)
        except (OSError, OutputError) as error:
            self._disk.begin(error, size)
            return False
        self._disk.end()
        return True

    def _complete(self) -> list[Path]:
        """All complete delta files, the one opened least recently first. Anything else in the folder is left alone,
        except the partial files and lone signatures that a killed process left: they are deleted."""
        found, now = [], time.time()
        for path in self.folder.iterdir():
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                if _DIGEST.fullmatch(path.name):
                    found.append((status.st_mtime, path))
                elif _is_left_over(path) and now - status.st_mtime > _FETCH_SECONDS:
                    path.unlink()
            except OSError as error:  # a dangling link, or a file that another replica has just deleted
                _log.warning("%s in the folder of deltas is left alone: %s", path.name, error.strerror)
        return [path for _, path in sorted(found)]

    def _admit(self, path: Path) -> None:
        for old in self._files.put(path.name, path, path.stat().st_size):
            signature_file(old).unlink(missing_ok=True)
            old.unlink(missing_ok=True)


def _is_left_over(path: Path) -> bool:
    partial = path.name.startswith(".") and path.suffix == ".partial"
    return partial or (path.suffix == ".sig" and not path.with_suffix("").exists())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
