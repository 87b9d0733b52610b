"""The memory of the device tiers: which tasks are there, which are in use, and which bytes are reserved."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ken_core import ResidentModel
from serving.errors import UnavailableError
from serving.popularity import Popularity
from serving.tiers.budget import ByteBudget
from serving.tiers.loaded import DeviceTier, Loaded


class DeviceMemory:
    """Tasks on the device, each tier within its budget of bytes. Threads may share it.

    Bytes are reserved before memory is taken, so the count of a tier is never below what its tasks take. Some tasks
    stay even if their tier exceeds its budget: those that a request holds or waits for, and the active task.
    """

    def __init__(self, resident: ResidentModel, packed_bytes: int, materialised_bytes: int) -> None:
        self._resident = resident
        self._changed = threading.Condition()
        self._uses: Popularity[str] = Popularity()
        self._wanted: Counter[str] = Counter()
        self._closing = False
        self._tiers: dict[DeviceTier, ByteBudget[Loaded]] = {
            "materialised": ByteBudget(materialised_bytes, self._in_use, self._uses),
            "packed": ByteBudget(packed_bytes, self._in_use, self._uses),
        }

    def budget(self, tier: DeviceTier) -> int:
        """Bytes that a tier may take."""
        return self._tiers[tier].budget

    def nbytes(self, tier: DeviceTier) -> int:
        """Bytes of a tier's tasks, plus the bytes reserved in the tier."""
        return self._tiers[tier].nbytes

    def held(self) -> list[Loaded]:
        """All tasks of both tiers."""
        with self._changed:
            return [loaded for tier in self._tiers.values() for loaded in tier]

    def tier_of(self, digest: str) -> DeviceTier | None:
        """The tier that holds a task; None if it is not on the device."""
        with self._changed:
            return next((name for name, tier in self._tiers.items() if digest in tier), None)

    def find(self, digest: str) -> Loaded | None:
        """A task, which may leave at any time; None if it is not on the device."""
        with self._changed:
            return next((loaded for tier in self._tiers.values() if (loaded := tier.get(digest)) is not None), None)

    def uses(self, digest: str) -> float:
        """How often a task was asked for; counts fade (`Popularity`)."""
        with self._changed:
            return self._uses(digest)

    def fewest_uses(self, tier: DeviceTier) -> float:
        """Uses of the least used task in a tier; infinity if the tier has no task."""
        with self._changed:
            return min((self._uses(loaded.digest) for loaded in self._tiers[tier]), default=math.inf)

    # Requests

    @contextmanager
    def wanted(self, digest: str) -> Iterator[None]:
        """Count a use of a task, and keep the task on the device inside this block."""
        with self._changed:
            self._uses.note(digest)
            self._wanted[digest] += 1
        try:
            yield
        finally:
            with self._changed:
                self._wanted[digest] -= 1
                if not self._wanted[digest]:
                    del self._wanted[digest]
                self._changed.notify_all()

    def awaited(self) -> list[str]:
        """What is wanted and not on the device."""
        with self._changed:
            return [digest for digest in self._wanted if self.find(digest) is None]

    def hold(self, digest: str) -> Loaded | None:
        """Keep a task on the device until `release`; None if it is not there."""
        with self._changed:
            loaded = self.find(digest)
            if loaded is not None:
                loaded.users += 1
            return loaded

    def release(self, loaded: Loaded) -> None:
        """End one `hold`."""
        with self._changed:
            loaded.users -= 1
            self._changed.notify_all()

    # Bytes

    def reserve(self, tier: DeviceTier, name: str, nbytes: int) -> float:
        """Count bytes that a task is about to take, until `put` or `give_back`. The least used tasks leave for it.

        Returns:
            0.0, the seconds of waiting: this method never waits.
        """
        with self._changed:
            self._tiers[tier].reserve(name, nbytes)
        return 0.0

    def reserve_in_turn(self, tier: DeviceTier, name: str, nbytes: int) -> float:
        """As `reserve`, but wait first while requests and reservations take all of the tier.

        Not for a thread that has the weights alone, which must never wait for requests.

        Returns:
            Seconds of waiting.

        Raises:
            UnavailableError: the server is stopping.
        """
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._closing or not self._is_full(self._tiers[tier]))
            if self._closing:
                raise UnavailableError("the server is stopping")
            self.reserve(tier, name, nbytes)
        return time.perf_counter() - started

    def give_back(self, tier: DeviceTier, name: str) -> None:
        """Drop a reservation for which no task was put in."""
        with self._changed:
            self._tiers[tier].give_back(name)
            self._changed.notify_all()

    def put(self, loaded: Loaded) -> None:
        """Add a task to its tier, in place of the bytes reserved under its name."""
        with self._changed:
            self._tiers[loaded.tier].put(loaded.digest, loaded, loaded.nbytes)
            self._changed.notify_all()

    def move_to_full_tensors(self, made: Loaded) -> None:
        """Give a packed task the full tensors that were made for it. If the task has left, drop them."""
        with self._changed:
            loaded = self._tiers["packed"].pop(made.digest)
            if loaded is None:
                self.give_back(made.tier, made.digest)
                return
            loaded.take_over(made)
            self.put(loaded)

    def remove(self, loaded: Loaded) -> None:
        """Take a task out of its tier."""
        with self._changed:
            self._tiers[loaded.tier].pop(loaded.digest)
            self._changed.notify_all()

    def discard(self, digest: str) -> Loaded | None:
        """Take a task out of its tier, unless a request holds it or waits for it; None if no task was taken out."""
        with self._changed:
            loaded = self.find(digest)
            if loaded is None or self._is_asked_for(loaded):
                return None
            self.remove(loaded)
            return loaded

    def close(self) -> None:
        """End all waiting for room with an `UnavailableError`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    # With the lock held

    def _in_use(self, loaded: Loaded) -> bool:
        return self._is_asked_for(loaded) or loaded.attached is self._resident.active

    def _is_asked_for(self, loaded: Loaded) -> bool:
        return loaded.users > 0 or loaded.digest in self._wanted

    def _is_full(self, tier: ByteBudget[Loaded]) -> bool:
        """Whether requests and reservations take all of a tier. An empty tier is never full, whatever its budget."""
        held = tier.reserved + sum(loaded.nbytes for loaded in tier if self._is_asked_for(loaded))
        return held > 0 and held >= tier.budget
