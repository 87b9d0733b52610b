"""The disk tier: delta files. A file that is absent is fetched from the store."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ken_core import DeltaFile, deltafile
from ken_core.errors import DeltaFormatError
from serving.security.signature_file import signature_file, write_signatures
from serving.store import Store
from serving.tiers.budget import ByteBudget
from serving.tiers.signature_check import SignatureCheck

_log = logging.getLogger(__name__)


class DeltaFiles:
    """Delta files on disk, which survive restarts. Threads may share it.

    A delta's file is ``<folder>/<digest>``. Whenever it is opened, its sha256 is compared with its name.

    Args:
        budget: bytes of delta files. Signature files (``<digest>.sig``, a few hundred bytes each) do not count.
        store: None: only files that are already in the folder can be opened.
        signed: decides which deltas may be opened; None: all.
    """

    def __init__(self, folder: Path, budget: int, store: Store | None, signed: SignatureCheck | None = None) -> None:
        self.folder = folder
        self._store = store
        self._signed = signed
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._held: Counter[str] = Counter()
        self._files: ByteBudget[Path] = ByteBudget(budget, lambda path: self._held[path.name] > 0)
        for path in sorted(self._complete(), key=lambda p: p.stat().st_mtime):
            self._admit(path)

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

    def open(self, digest: str) -> tuple[DeltaFile, bool]:
        """Open a delta's file, which is fetched from the store if it is not on disk.

        Returns:
            The file, and whether it was already on disk.

        Raises:
            StoreError: the file is not on disk, and the store does not deliver it.
            DeltaFormatError: the file from the store is no valid delta.
            RefusedDeltaError: deltas must be signed, and no trusted key signed this one.
        """
        path = self.folder / digest
        signatures = self._signed.check(path) if self._signed else ()
        found = self._open_on_disk(path)
        file = found or self._fetch(path)
        if signatures:
            write_signatures(path, signatures)
        return file, found is not None

    def _open_on_disk(self, path: Path) -> DeltaFile | None:
        if not path.is_file():
            return None
        try:
            if _sha256(path) != path.name:  # checked before the file's content is used
                _log.warning("delta file %s on disk no longer has the sha256 of its name; fetching it again", path.name)
                return None
            file = deltafile.open_file(path, path.name)
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
        self._store.deltas.fetch(path.name, path)
        with self._lock:
            self._admit(path)
        return deltafile.open_file(path, path.name)  # the fetch has compared the digest

    def _complete(self) -> list[Path]:
        """All complete delta files. Deletes the partial files and lone signatures that a killed process left."""
        left = [s for s in self.folder.glob("*.sig") if not s.with_suffix("").exists()]
        for path in (*self.folder.glob(".*.partial"), *left):
            if time.time() - path.stat().st_mtime > 600:  # a younger file may belong to another replica's fetch
                path.unlink(missing_ok=True)
        return [p for p in self.folder.iterdir() if len(p.name) == 64]

    def _admit(self, path: Path) -> None:
        for old in self._files.put(path.name, path, path.stat().st_size):
            signature_file(old).unlink(missing_ok=True)
            old.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
