"""The host tier: decoded deltas. A delta that is absent is loaded from the store through the disk tier, or merged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ken_core import Checkpoint, Delta, DeltaFormatError, deltafile
from serving.errors import StoreError
from serving.routing.merges import Merge
from serving.telemetry.hits import MERGED
from serving.tiers.budget import ByteBudget
from serving.tiers.files import DeltaFiles
from serving.tiers.merges import Merges
from serving.tiers.merging import Merging

_TRIES = 5


@dataclass(frozen=True)
class Found:
    """A decoded delta and where it was found.

    Attributes:
        tier: the nearest tier that held the delta: ``host``, ``disk`` or ``store``; ``merge`` if it was made.
        fetch_seconds: time to fetch and open its file.
        decode_seconds: time to decode the file.
        merge_seconds: time to make it of its parts, for which they were loaded as well.
    """

    delta: Delta
    tier: str
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    merge_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.fetch_seconds + self.decode_seconds + self.merge_seconds


class DeltaCache:
    """Decoded deltas by digest, loaded from the store through the disk tier. Threads may share it.

    Args:
        files: the disk tier.
        host_budget: bytes of decoded deltas in host memory.
        base: the checkpoint that deltas are decoded against.
        fingerprint: the base's.
        worth_keeping: whether a decoded delta is kept in host memory at all. Beside a GPU every delta is kept. On a CPU
            the packed delta is in the same memory, and keeping the decoded one too would hold its values twice.
        threads: number of threads to decode on; by default as many as torch may use.
        merges: which digests are of merges; by default none is.

    Attributes:
        files, merges: as given.
    """

    def __init__(
        self,
        files: DeltaFiles,
        host_budget: int,
        base: Checkpoint,
        fingerprint: str,
        worth_keeping: Callable[[Delta], bool] = lambda delta: True,
        threads: int | None = None,
        merges: Merges | None = None,
    ) -> None:
        self.files = files
        self.merges = Merges() if merges is None else merges
        self._merging = Merging(base, files.manifest)
        self._base = base
        self._fingerprint = fingerprint
        self._worth_keeping = worth_keeping
        self._threads = threads
        self._lock = threading.Lock()
        self._host: ByteBudget[Delta] = ByteBudget(host_budget)

    @property
    def host_nbytes(self) -> int:
        """Bytes of the decoded deltas in host memory."""
        return self._host.nbytes

    def tier_of(self, digest: str) -> str:
        """Where `load` would find a delta: ``host``, ``disk`` or ``store``."""
        with self._lock:
            held = digest in self._host
        if held:
            return "host"
        return "disk" if self.files.holds(digest) else "store"

    def load(self, digest: str) -> Found:
        """Load a decoded delta; blocks while the file is fetched and decoded, or the delta merged of others.

        Two calls for one digest at the same time do the work twice, so loaders call this through a `SingleFlight`.

        Raises:
            StoreError, RefusedDeltaError: as `DeltaFiles.open`.
            UnmergeableError: as `Merging`.
            DeltaFormatError, BaseMismatchError, ConfigMismatchError, CheckpointChangedError: as `deltafile.read`.
        """
        with self._lock:
            held = self._host.get(digest)
        if held is not None:
            return Found(held, "host")
        merge = self.merges.find(digest)
        found = self._read(digest) if merge is None else self._merge(merge)
        if self._worth_keeping(found.delta):
            with self._lock:
                self._host.put(digest, found.delta, found.delta.nbytes)
        return found

    def drop(self, digest: str) -> None:
        """Keep a decoded delta in host memory no longer."""
        with self._lock:
            self._host.pop(digest)

    def _read(self, digest: str) -> Found:
        """Fetch and decode a delta; again, if another replica with this folder deletes the file meanwhile."""
        for _ in range(_TRIES):
            try:
                return self._read_once(digest)
            except DeltaFormatError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
        raise StoreError(
            f"delta {digest} was deleted {_TRIES} times while it was read: other replicas make room in its folder; "
            "give KEN_DISK_BYTES more, or each replica a folder of its own"
        )

    def _read_once(self, digest: str) -> Found:
        started = time.perf_counter()
        with self.files.held(digest):
            file, on_disk = self.files.open(digest)
            fetched = time.perf_counter()
            delta = deltafile.read(file, self._base, self._fingerprint, self._threads)
        decoded = time.perf_counter()
        return Found(delta, "disk" if on_disk else "store", fetched - started, decoded - fetched)

    def _merge(self, merge: Merge) -> Found:
        self._merging.check(merge)
        parts = [self.load(part.digest) for part in merge.parts]
        started = time.perf_counter()
        delta = self._merging(merge, [part.delta for part in parts])
        return Found(
            delta,
            MERGED,
            sum(part.fetch_seconds for part in parts),
            sum(part.decode_seconds for part in parts),
            time.perf_counter() - started,
        )
