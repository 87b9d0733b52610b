"""Which tasks deserve full tensors, and how they get them."""

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
"""Uses after which a task may be materialised; to push another one out it needs twice that one's."""


class Promotion:
    """Moves packed tasks that are asked for often to full tensors, on a thread of its own."""

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
        """Give a task its full tensors soon, if it deserves them; returns at once."""
        if loaded.tier == "packed" and not self._closing and self._deserves(loaded):
            self._promote(loaded.digest)

    def close(self) -> None:
        self._closing = True
        self._promote.close()

    def _deserves(self, loaded: Loaded) -> bool:
        budget, uses = self._memory.budget("materialised"), self._memory.uses(loaded.digest)
        if not budget or uses < _HOT_USES or loaded.digest in self._stay_packed:
            return False  # asked at every request, and summing up a task's bytes walks all its tensors
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
        """Prepare the task anew; the thread that owns the weights puts the full tensors in place of the packed ones."""
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
