"""Tiers between the store and the device: delta files on disk, decoded deltas in host memory.

A digest is fetched and decoded once however many wait for it; different digests load in parallel.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ken_core import Checkpoint, Delta, DeltaFile, deltafile
from ken_core.errors import DeltaFormatError
from serving.errors import UnavailableError
from serving.signaturecheck import SignatureCheck
from serving.signaturefile import signature_file, write_signatures
from serving.store import Store

_log = logging.getLogger(__name__)

V = TypeVar("V")


class ByteBudget(Generic[V]):
    """Values by key within a byte budget. Whatever is worth least leaves first, of equals the least recently used.

    Args:
        in_use: values that never leave.
        worth: of a key; by default all are worth the same.
    """

    def __init__(
        self,
        budget: int,
        in_use: Callable[[V], bool] = lambda value: False,
        worth: Callable[[str], float] = lambda key: 0.0,
    ) -> None:
        self.budget = budget
        self._in_use = in_use
        self._worth = worth
        self._items: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self.nbytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[V]:
        return (value for value, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> V | None:
        """The value, now the most recently used; None where it is absent."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    def put(self, key: str, value: V, nbytes: int) -> list[V]:
        """Add a value; returns those that left to make room. A value in use, or the new one, never leaves."""
        self.pop(key)
        self._items[key] = (value, nbytes)
        self.nbytes += nbytes
        return self._shrink(keep=key)

    def pop(self, key: str) -> V | None:
        item = self._items.pop(key, None)
        if item is None:
            return None
        self.nbytes -= item[1]
        return item[0]

    def _shrink(self, keep: str) -> list[V]:
        left: list[V] = []
        if self.nbytes <= self.budget:
            return left
        for key in sorted(self._items, key=self._worth):  # stable: of equals the least recently used comes first
            if self.nbytes <= self.budget:
                break
            if key != keep and not self._in_use(self._items[key][0]):
                value = self.pop(key)
                assert value is not None
                left.append(value)
        return left


class SingleFlight(Generic[V]):
    """Runs a function on a pool, at most once at a time for each key; all who asked meanwhile share the result."""

    def __init__(self, work: Callable[[str], V], threads: int, name: str) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._flights: dict[str, Future[V]] = {}

    def __call__(self, key: str) -> Future[V]:
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = Future()
                flight.set_running_or_notify_cancel()  # who gives up waiting must not cancel it for the others
                self._pool.submit(self._fly, key, flight)
                self._flights[key] = flight
            return flight

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            left, self._flights = self._flights, {}
        for flight in left.values():
            flight.set_exception(UnavailableError("the server is stopping"))

    def _fly(self, key: str, flight: Future[V]) -> None:
        try:
            result = self._work(key)
        except BaseException as error:
            with self._lock:
                del self._flights[key]
            flight.set_exception(error)
        else:
            with self._lock:
                del self._flights[key]
            flight.set_result(result)


class DeltaFiles:
    """The disk tier: ``<folder>/<digest>``, checked against its name whenever it is opened. Survives restarts.

    Args:
        budget: bytes of delta files; the few hundred of each one's signatures are not counted.
        signed: decides what may be opened; None: everything. Signatures lie beside the files, as ``<digest>.sig``.
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
        return self._files.nbytes

    @contextmanager
    def held(self, digest: str) -> Iterator[None]:
        """Keep a file from being evicted while it is read."""
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
        """The delta's file and whether it was here already; fetched from the store if it was not.

        Raises:
            StoreError: it is not on disk and the store does not give it.
            DeltaFormatError: the store gave a file that is no sound delta.
            RefusedDeltaError: it must be signed, and no trusted key did.
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
            if _sha256(path) != path.name:  # found out before anything of it is believed
                _log.warning("%s on disk does not have its digest any more; fetching it again", path.name)
                return None
            file = deltafile.open_file(path, path.name)
            os.utime(path)
        except (DeltaFormatError, OSError) as error:
            _log.warning("%s on disk is damaged (%s); fetching it again", path.name, error)
            return None
        with self._lock:
            self._files.get(path.name)
        return file

    def _fetch(self, path: Path) -> DeltaFile:
        if self._store is None:
            raise FileNotFoundError(path)
        self._store.fetch(path.name, path)
        with self._lock:
            self._admit(path)
        return deltafile.open_file(path, path.name)  # fetching has compared the digest

    def _complete(self) -> list[Path]:
        """Delta files; what a killed process left beside them is cleared away."""
        left = [s for s in self.folder.glob("*.sig") if not s.with_suffix("").exists()]
        for path in (*self.folder.glob(".*.partial"), *left):
            if time.time() - path.stat().st_mtime > 600:  # younger ones may be another replica's
                path.unlink(missing_ok=True)
        return [p for p in self.folder.iterdir() if len(p.name) == 64]

    def _admit(self, path: Path) -> None:
        for old in self._files.put(path.name, path, path.stat().st_size):
            signature_file(old).unlink(missing_ok=True)
            old.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Found:
    """A decoded delta, the nearest tier that held it, and what it took to have it."""

    delta: Delta
    tier: str
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.fetch_seconds + self.decode_seconds


class DeltaCache:
    """Decoded deltas by digest, loaded through the disk tier from the store.

    Args:
        worth_keeping: whether a decoded delta is kept in host memory at all, within `host_budget`. Beside a GPU all
            are; on a CPU a packed delta lies in the same memory, and keeping both would hold its values twice.
        threads: to decode on; by default as many as torch may use.
    """

    def __init__(
        self,
        files: DeltaFiles,
        host_budget: int,
        base: Checkpoint,
        fingerprint: str,
        worth_keeping: Callable[[Delta], bool] = lambda delta: True,
        threads: int | None = None,
    ) -> None:
        self.files = files
        self._base = base
        self._fingerprint = fingerprint
        self._worth_keeping = worth_keeping
        self._threads = threads
        self._lock = threading.Lock()
        self._host: ByteBudget[Delta] = ByteBudget(host_budget)
        self.hits = {"host": 0, "disk": 0, "store": 0}

    @property
    def host_nbytes(self) -> int:
        return self._host.nbytes

    def tier_of(self, digest: str) -> str:
        """Where `load` would find a delta: ``host``, ``disk`` or ``store``."""
        with self._lock:
            held = digest in self._host
        if held:
            return "host"
        return "disk" if self.files.holds(digest) else "store"

    def load(self, digest: str) -> Found:
        """A decoded delta; blocks while it is fetched. Call it through a `SingleFlight`.

        Raises:
            StoreError, RefusedDeltaError, DeltaFormatError, BaseMismatchError, ConfigMismatchError: as the tiers
                below do.
        """
        with self._lock:
            held = self._host.get(digest)
            self.hits["host"] += held is not None
        if held is not None:
            return Found(held, "host")
        started = time.perf_counter()
        with self.files.held(digest):
            file, on_disk = self.files.open(digest)
            fetched = time.perf_counter()
            delta = deltafile.read(file, self._base, self._fingerprint, self._threads)
        decoded = time.perf_counter()
        tier = "disk" if on_disk else "store"
        with self._lock:
            self.hits[tier] += 1
            if self._worth_keeping(delta):
                self._host.put(digest, delta, delta.nbytes)
        return Found(delta, tier, fetched - started, decoded - fetched)
