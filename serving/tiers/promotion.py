"""Which packed tasks move to full tensors, and how they move."""

from __future__ import annotations

import logging

from ken_core import CheckpointChangedError, ResidentModel
from serving.errors import UnavailableError
from serving.tiers.cache import DeltaCache
from serving.tiers.device_memory import DeviceMemory
from serving.tiers.loaded import Loaded
from serving.tiers.owner import OnOwner
from serving.tiers.preparation import Preparation
from serving.tiers.single_flight import SingleFlight

_log = logging.getLogger(__name__)
_HOT_USES = 4
"""Uses after which a task may be materialised. To take another task's place, it needs twice that task's uses."""


class Promotion:
    """Moves packed tasks that are asked for often to full tensors. Works on its own thread."""

    def __init__(
        self,
        resident: ResidentModel,
        memory: DeviceMemory,
        preparation: Preparation,
        cache: DeltaCache,
        on_owner: OnOwner,
    ) -> None:
        self._resident = resident
        self._memory = memory
        self._preparation = preparation
        self._cache = cache
        self._on_owner = on_owner
        self._stay_packed: set[str] = set()
        self._closing = False
        self._promote = SingleFlight(self._materialise, 1, "ken-materialise")

    def consider(self, loaded: Loaded) -> None:
        """Start to move a task to full tensors, if it is asked for often enough; returns at once."""
        if loaded.tier == "packed" and not self._closing and self._deserves(loaded):
            self._promote(loaded.digest)

    def close(self) -> None:
        """Start no further move, and wait for the one that is running."""
        self._closing = True
        self._promote.close()

    def _deserves(self, loaded: Loaded) -> bool:
        budget, uses = self._memory.budget("materialised"), self._memory.uses(loaded.digest)
        if not budget or uses < _HOT_USES or loaded.digest in self._stay_packed:
            return False  # early, because every request comes here and summing up the bytes walks all tensors
        size = self._resident.bytes_of(loaded.attached.names)
        if size > budget:
            return False
        has_room = self._memory.nbytes("materialised") + size <= budget
        return has_room or uses > 2 * self._memory.fewest_uses("materialised")

    def _materialise(self, digest: str) -> None:
        try:
            self._move_to_full_tensors(digest)
        except (UnavailableError, CheckpointChangedError):
            return
        except Exception as error:
            self._stay_packed.add(digest)
            _log.warning("task %s could not be materialised and stays packed: %s", digest, error)

    def _move_to_full_tensors(self, digest: str) -> None:
        """Prepare the task anew. A thread that has the weights alone then replaces its packed values."""
        loaded = self._memory.find(digest)
        if loaded is None or loaded.tier != "packed":
            return
        delta = self._cache.load(digest).delta
        made = self._preparation.prepare_task(digest, delta, "materialised", self._memory.reserve, loaded.spec)
        try:
            self._on_owner(lambda: self._move(made)).result()
        except BaseException:
            self._memory.give_back(made.tier, digest)
            raise

    def _move(self, made: Loaded) -> None:
        loaded = self._memory.find(made.digest)
        if loaded is not None and self._resident.active is loaded.attached:
            self._resident.revert()
        self._memory.move_to_full_tensors(made)
