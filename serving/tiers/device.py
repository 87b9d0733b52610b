"""The device tiers: tasks attached to the resident model, packed or materialised, each tier within its bytes.

A task is in one tier. It comes in packed. A task that is asked for often moves to full tensors, as far as their budget
goes; from then on it is activated by re-pointing parameters. A task with low-rank factors can only be materialised.
Loading runs on its own threads, beside the forward pass. A task that a request holds stays on the device.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from ken_core import Delta, ResidentModel
from ken_core.mixing.model import MixedModel
from ken_core.mixing.steps import MixedSteps
from ken_core.tokenization import Encoder
from serving.errors import UnavailableError
from serving.pipelines.base import TaskSpec
from serving.routing.merges import Merge
from serving.telemetry.hits import MERGED, TIERS, Hits, TaskTiers, hit_rate
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache, Found
from serving.tiers.device_memory import DeviceMemory
from serving.tiers.giving_back import GivingBack
from serving.tiers.loaded import Loaded
from serving.tiers.owner import OnOwner
from serving.tiers.preparation import Preparation
from serving.tiers.promotion import Promotion
from serving.tiers.single_flight import SingleFlight
from serving.tiers.trials import Trials
from serving.tiers.unfit import Unfit

_LOADERS = 2


class DeviceTiers:
    """Tasks on the device. `acquire` and `release` may be called from any event loop.

    Args:
        cache: gives decoded deltas.
        mixed, steps: run batches and decode steps that mix tasks; None: tasks are attached for exchanges alone.
        packed_bytes, materialised_bytes: budgets of the tiers. A task in use stays even if its tier exceeds its budget.
        why_no_texts: why the base generates no texts; empty: it does.
    """

    def __init__(
        self,
        resident: ResidentModel,
        cache: DeltaCache,
        metrics: Metrics,
        packed_bytes: int,
        materialised_bytes: int,
        on_owner: OnOwner,
        mixed: MixedModel | None = None,
        steps: MixedSteps | None = None,
        why_no_texts: str = "",
    ) -> None:
        self._resident = resident
        self._cache = cache
        self._merges = cache.merges
        self._metrics = metrics
        self._on_owner = on_owner
        self._memory = DeviceMemory(resident, packed_bytes, materialised_bytes)
        self.giving_back = GivingBack(resident.checkpoint)
        self._preparation = Preparation(resident, self._memory, mixed, steps, why_no_texts)
        self._trials = Trials(resident, self._memory, self._preparation, on_owner)
        self._promotion = Promotion(resident, self._memory, self._preparation, cache, on_owner)
        self._unfit = Unfit()
        self.hits = Hits()
        self._load = SingleFlight(self._bring, _LOADERS, "ken-load")
        self._make = SingleFlight(self._bring_merge, 1, "ken-merge")
        self._next_merge = 0.0
        """When the next merge may be made, on the clock of `time.monotonic`."""
        self._closing = threading.Event()

    @property
    def base_encoder(self) -> Encoder:
        """The base's tokenizer."""
        return self._preparation.base_encoder

    @property
    def packed_nbytes(self) -> int:
        """Bytes of the packed tasks, plus the bytes reserved for tasks that are being attached."""
        return self._memory.nbytes("packed")

    @property
    def materialised_nbytes(self) -> int:
        """Bytes of the tasks with full tensors, plus the bytes reserved for tasks that are being attached."""
        return self._memory.nbytes("materialised")

    def held(self) -> list[Loaded]:
        """All tasks of both tiers."""
        return self._memory.held()

    def by_use(self) -> list[Loaded]:
        """All tasks of both tiers, the one asked for most first."""
        return sorted(self._memory.held(), key=lambda loaded: -self._memory.uses(loaded.digest))

    def awaited(self) -> list[str]:
        """Digests that requests wait for, which are not on the device yet."""
        return self._memory.awaited()

    def is_on_device(self, digest: str) -> bool:
        return self._memory.tier_of(digest) is not None

    def describe(self, digests: Sequence[str]) -> TaskTiers:
        """Where these deltas are now, and where requests found them."""
        hits = self.hits.of(digests)
        tiers = {digest: self.tier_of(digest) for digest in digests}
        here = ((digest, self._memory.find(digest)) for digest in digests)
        unmixed = {digest: loaded.unmixed for digest, loaded in here if loaded is not None and loaded.unmixed}
        return TaskTiers(tiers, hits, hit_rate(hits), unmixed)

    def tier_of(self, digest: str) -> str:
        """The nearest tier that holds a delta; ``store`` if no tier of this replica does."""
        return self._memory.tier_of(digest) or self._cache.tier_of(digest)

    async def acquire(self, digest: str) -> Loaded:
        """Hold a task on the device until `release`. If it is not there, it is fetched, decoded and attached.

        Raises:
            UnfitDeltaError, UnsupportedKindError: the delta can never be served here. This is remembered.
            StoreError, RefusedDeltaError, CheckpointChangedError: as `DeltaCache.load`.
            UnavailableError: the server is stopping.
        """
        self._unfit.refuse(digest)
        return await self._acquire(digest, self._load)

    async def acquire_merge(self, merge: Merge, client: Hashable) -> Loaded:
        """Hold a merge on the device until `release`. If it is not there, it is made: one merge at a time, at most half
        of the time, and beside the loading of other deltas.

        Args:
            client: who asks for it.

        Raises:
            UnmergeableError: its parts cannot be merged. This is remembered.
            ForbiddenError, OverloadedError: as `Merges.hold`.
            UnfitDeltaError, StoreError, RefusedDeltaError, CheckpointChangedError, UnavailableError: as `acquire`.
        """
        self._unfit.refuse(merge.digest)
        self._merges.hold(merge, client, here=self.tier_of(merge.digest) != TIERS[-1])
        try:
            return await self._acquire(merge.digest, self._make)
        except BaseException:
            self._merges.release(merge.digest)
            raise

    async def preload(self, digest: str) -> int:
        """Bring a task onto the device before a request asks for it. No request is counted.

        Returns:
            Bytes that the task takes.

        Raises:
            UnfitDeltaError, StoreError, RefusedDeltaError, CheckpointChangedError, UnavailableError: as `acquire`.
        """
        self._unfit.refuse(digest)
        loaded, _ = await self._hold(digest, self._load)
        self._memory.release(loaded)
        return loaded.nbytes

    def release(self, loaded: Loaded) -> None:
        """End one hold of `acquire` or `acquire_merge`."""
        self._memory.release(loaded)
        self._merges.release(loaded.digest)

    def spec(self, delta: Delta) -> TaskSpec:
        """See `Preparation.spec`."""
        return self._preparation.spec(delta)

    def on_trial(self, digest: str, delta: Delta, spec: TaskSpec) -> AbstractContextManager[Loaded]:
        """See `Trials.on_trial`."""
        return self._trials.on_trial(digest, delta, spec)

    def renew(self, loaded: Loaded) -> None:
        """Attach a task anew, after a failed exchange has spoiled its buffers.

        On a thread that has the weights alone.
        """
        delta = self._trials.delta_of(loaded) or self._cache.load(loaded.digest).delta
        name, tier = f"{loaded.digest} renewed", loaded.tier
        made = self._preparation.prepare_task(name, delta, tier, self._memory.reserve, loaded.spec)
        loaded.take_over(made)
        self._memory.give_back(tier, name)

    def close(self) -> None:
        """Refuse further loads, and wait for those that are running."""
        self._closing.set()
        self._memory.close()
        self._load.close()
        self._make.close()
        self._promotion.close()
        self.giving_back.close()

    async def _acquire(self, digest: str, bring: SingleFlight[str]) -> Loaded:
        loaded, found = await self._hold(digest, bring)
        self.hits.note(digest, found)
        self._metrics.observe_lookup(found)
        self._promotion.consider(loaded)
        return loaded

    async def _hold(self, digest: str, bring: SingleFlight[str]) -> tuple[Loaded, str]:
        """A task, held on the device, and the tier where it was found."""
        found = ""
        with self._memory.wanted(digest):
            while (loaded := self._memory.hold(digest)) is None:
                brought = await asyncio.wrap_future(bring(digest))
                found = found or brought
            return loaded, found or loaded.tier

    # On the loaders' threads

    def _bring_merge(self, digest: str) -> str:
        """As `_bring`, after a rest as long as the last merge took. Merges that lost their place leave the tiers first.

        Raises:
            UnavailableError: the server is stopping; or this merge lost its place, since no request waits for it.
        """
        if self._closing.wait(self._next_merge - time.monotonic()):
            raise UnavailableError("the server is stopping")
        if self._merges.find(digest) is None:
            raise UnavailableError(f"merge {digest} is not made, since nobody waits for it; ask for it again")
        for gone in self._merges.leaving():
            self._cache.drop(gone)
            self._on_owner(partial(self._drop, gone)).result()
        return self._bring(digest)

    def _drop(self, digest: str) -> None:
        """Take a task off the device, unless a request wants it. On a thread that has the weights alone."""
        loaded = self._memory.discard(digest)
        if loaded is not None and self._resident.active is loaded.attached:
            self._resident.revert()

    def _bring(self, digest: str) -> str:
        """Load a task into its tier; waits while requests hold all of the tier.

        Returns:
            The tier where the delta was found.
        """
        loaded = self._memory.find(digest)
        if loaded is not None:  # an earlier load ended just before this one began
            return loaded.tier
        with self._unfit.noting(digest):
            found = self._cache.load(digest)
            tier, in_turn = self._preparation.first_tier(found.delta), self._memory.reserve_in_turn
            loaded = self._preparation.prepare_task(digest, found.delta, tier, in_turn)
        self._memory.put(loaded)
        self._observe(found, loaded.prepare_seconds)
        return found.tier

    def _observe(self, found: Found, attaching: float) -> None:
        self._metrics.load_seconds.labels(found.tier).observe(found.seconds + attaching)
        stages = {"fetch": found.fetch_seconds, "decode": found.decode_seconds, "attach": attaching}
        if found.tier == MERGED:
            stages["merge"] = found.merge_seconds
            self._next_merge = time.monotonic() + found.merge_seconds
        for stage, seconds in stages.items():
            self._metrics.load_stage_seconds.labels(stage).observe(seconds)
