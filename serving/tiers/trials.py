"""Deltas on trial: they are on the device like any other task, but under a name that no request can ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ken_core import Delta, ResidentModel
from serving.pipelines.base import TaskSpec
from serving.pipelines.text_generation import TEXT_GENERATION
from serving.tiers.device_memory import DeviceMemory
from serving.tiers.loaded import Loaded
from serving.tiers.owner import OnOwner
from serving.tiers.preparation import Preparation


class Trials:
    """Puts deltas on the device while they are tried."""

    def __init__(
        self, resident: ResidentModel, memory: DeviceMemory, preparation: Preparation, on_owner: OnOwner
    ) -> None:
        self._resident = resident
        self._memory = memory
        self._preparation = preparation
        self._on_owner = on_owner
        self._deltas: dict[str, Delta] = {}
        """Decoded deltas by name, because no lower tier holds them."""

    def delta_of(self, loaded: Loaded) -> Delta | None:
        """The decoded delta of a task on trial; None for any other task."""
        return self._deltas.get(loaded.digest)

    @contextmanager
    def on_trial(self, digest: str, delta: Delta, spec: TaskSpec) -> Iterator[Loaded]:
        """Put a delta on the device inside this block; afterwards it is gone.

        Args:
            spec: of the delta's task (`Preparation.spec`).

        Raises:
            UnavailableError: the server is stopping.
        """
        name = f"{digest} on trial"
        in_turn = self._memory.reserve_in_turn
        factors = delta.kind == TEXT_GENERATION and bool(delta.lowrank)  # which only decode steps could mix
        tier = "materialised" if factors else self._preparation.first_tier(delta)
        loaded = self._preparation.prepare_task(name, delta, tier, in_turn, spec)
        loaded.users = 1
        self._deltas[name] = delta
        self._memory.put(loaded)
        try:
            yield loaded
        finally:
            self._on_owner(lambda: self._remove(loaded)).result()

    def _remove(self, loaded: Loaded) -> None:
        """Take a task out of its tier, and its values out of the weights. On a thread that has the weights alone."""
        try:
            if self._resident.active is loaded.attached:
                self._resident.revert()
        finally:
            self._memory.remove(loaded)
            del self._deltas[loaded.digest]
