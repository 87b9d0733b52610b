"""The device tiers: tasks attached to the resident model, packed or materialised, each tier within its bytes.

A task is in one tier. It comes in packed; one that is asked for often moves to full tensors as far as their
budget goes, and is switched to by re-pointing parameters from then on. A task with low-rank factors can only be
materialised. Loading runs on threads of its own, beside the forward pass; whoever holds a task keeps it where it is.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from ken_core import Attached, CheckpointChangedError, Delta, ResidentModel
from ken_core.configs import restore
from ken_core.embedding import Embedder
from ken_core.errors import CheckpointError, DeltaFormatError
from ken_core.foreign import reading
from ken_core.foreign_tokenizer import check_ids
from ken_core.heads import Grafted, graft_split
from ken_core.tokenization import Encoder
from serving.errors import UnavailableError
from serving.pipelines import default_kind
from serving.pipelines.base import TaskSpec
from serving.popularity import Popularity
from serving.telemetry.hits import Hits, TaskTiers, hit_rate
from serving.telemetry.metrics import Metrics
from serving.tiers.budget import ByteBudget
from serving.tiers.cache import DeltaCache, Found
from serving.tiers.encoders import Encoders
from serving.tiers.single_flight import SingleFlight
from serving.tiers.unfit import Unfit

_log = logging.getLogger(__name__)
_LOADERS = 2
_HOT_USES = 4
"""Uses after which a task may be materialised; to push another one out it needs twice that one's."""

Call = Callable[[Callable[[], None]], Future[None]]


@dataclass(eq=False)
class Loaded:
    """A task ready to run: its delta on the device, its model around the shared backbone, its tokenizer."""

    digest: str
    attached: Attached
    model: Grafted
    head: str
    kind: str
    """What it answers unless a request asks for another kind its head can give."""
    spec: TaskSpec
    users: int = field(default=0)

    @property
    def nbytes(self) -> int:
        return self.attached.nbytes + (self.spec.embedder.nbytes if self.spec.embedder else 0)

    @property
    def tier(self) -> str:
        """``materialised`` or ``packed``."""
        return "materialised" if self.attached.materialised else "packed"


class DeviceTiers:
    """Tasks on the device. `acquire` and `release` may be called from any event loop.

    Args:
        packed_bytes, materialised_bytes: budgets; what is in use stays whatever they say.
        on_owner: runs something on the thread that owns the weights, between two batches.
    """

    def __init__(
        self,
        resident: ResidentModel,
        cache: DeltaCache,
        metrics: Metrics,
        packed_bytes: int,
        materialised_bytes: int,
        on_owner: Call,
    ) -> None:
        self._resident = resident
        self._cache = cache
        self._metrics = metrics
        self._on_owner = on_owner
        self._changed = threading.Condition()
        self._uses: Popularity[str] = Popularity()
        self._packed: ByteBudget[Loaded] = ByteBudget(packed_bytes, self._in_use, self._uses)
        self._materialised: ByteBudget[Loaded] = ByteBudget(materialised_bytes, self._in_use, self._uses)
        self._wanted: Counter[str] = Counter()
        self._stay_packed: set[str] = set()
        self._trials: dict[str, Delta] = {}
        """What no tier below this one holds."""
        self._closing = False
        self._unfit = Unfit()
        self.hits = Hits()
        self._load = SingleFlight(self._bring, _LOADERS, "ken-load")
        self._promote = SingleFlight(self._materialise, 1, "ken-materialise")
        self._encoders = Encoders(resident.checkpoint)

    @property
    def base_encoder(self) -> Encoder:
        return self._encoders.of_base

    @property
    def packed_nbytes(self) -> int:
        return self._packed.nbytes

    @property
    def materialised_nbytes(self) -> int:
        return self._materialised.nbytes

    def held(self) -> list[Loaded]:
        """All tasks of both tiers."""
        with self._changed:
            return [*self._packed, *self._materialised]

    def describe(self, digests: Sequence[str]) -> TaskTiers:
        """Where these deltas lie now, and where requests for any of them found them."""
        hits = self.hits.of(digests)
        return TaskTiers({digest: self.tier_of(digest) for digest in digests}, hits, hit_rate(hits))

    def tier_of(self, digest: str) -> str:
        """The nearest tier that holds a delta; ``store`` where none of this replica's does."""
        with self._changed:
            if digest in self._materialised:
                return "materialised"
            if digest in self._packed:
                return "packed"
        return self._cache.tier_of(digest)

    async def acquire(self, digest: str) -> Loaded:
        """A task, held on the device until `release`; fetched, decoded and attached if it is not there.

        Raises:
            UnfitDeltaError, UnsupportedKindError: it can never be served here; found out once.
        """
        self._unfit.refuse(digest)
        with self._changed:
            self._uses.note(digest)
            self._wanted[digest] += 1
        found = ""
        try:
            while True:
                with self._changed:
                    loaded = self._find(digest)
                    if loaded is not None:
                        loaded.users += 1
                        found = found or loaded.tier
                        break
                brought = await asyncio.wrap_future(self._load(digest))
                found = found or brought
        finally:
            with self._changed:
                self._wanted[digest] -= 1
                if not self._wanted[digest]:
                    del self._wanted[digest]
                self._changed.notify_all()
        self.hits.note(digest, found)
        self._metrics.observe_lookup(found)
        self._consider(loaded)
        return loaded

    def release(self, loaded: Loaded) -> None:
        with self._changed:
            loaded.users -= 1
            self._changed.notify_all()

    def spec(self, delta: Delta) -> TaskSpec:
        """What of a task, beside its weights, its answers depend on. Its tokenizer is made here.

        Raises:
            DeltaFormatError: no tokenizer that suits the model can be made of the delta's files.
        """
        config = restore(dict(delta.config), self._resident.checkpoint.config)
        try:
            with reading("the delta's tokenizer"):
                encoder = self._encoders.of(delta)
                if encoder is not self.base_encoder or delta.dense:  # an embedding may have fewer rows than the base's
                    check_ids(encoder, config)
        except CheckpointChangedError:
            raise
        except CheckpointError as error:
            raise DeltaFormatError(str(error)) from error
        embedder = None if delta.embedding is None else Embedder(delta.embedding, delta.projections)
        return TaskSpec(config, encoder, embedder)

    @contextmanager
    def on_trial(self, digest: str, delta: Delta, spec: TaskSpec) -> Iterator[Loaded]:
        """A delta on the device that no request can ask for, in a tier as any other, and gone afterwards.

        Raises:
            UnavailableError: the server is stopping.
        """
        tier = self._wait_for_room(delta)
        loaded = self._attached(f"{digest} on trial", delta, spec)
        loaded.users = 1
        with self._changed:
            self._trials[loaded.digest] = delta
            tier.put(loaded.digest, loaded, loaded.nbytes)
        try:
            yield loaded
        finally:
            self._on_owner(partial(self._remove, tier, loaded)).result()

    def renew(self, loaded: Loaded) -> None:
        """Attach a task again whose buffers a failed exchange has spoiled. On the thread that owns the weights."""
        delta = self._trials.get(loaded.digest) or self._cache.load(loaded.digest).delta
        loaded.attached = self._resident.attach(delta, materialised=loaded.attached.materialised)
        loaded.model = self._model(delta, loaded.attached)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._load.close()
        self._promote.close()

    # With the lock held

    def _find(self, digest: str) -> Loaded | None:
        return self._materialised.get(digest) or self._packed.get(digest)

    def _in_use(self, loaded: Loaded) -> bool:
        return loaded.users > 0 or loaded.digest in self._wanted or loaded.attached is self._resident.active

    def _is_full_of_users(self, tier: ByteBudget[Loaded]) -> bool:
        held = sum(loaded.nbytes for loaded in tier if loaded.users or loaded.digest in self._wanted)
        return held > 0 and held >= tier.budget

    # On the loaders' threads

    def _bring(self, digest: str) -> str:
        """Load a task into its tier; waits while all of the tier is held by requests. Says where its delta was."""
        with self._changed:
            loaded = self._find(digest)
            if loaded is not None:  # a load that ended just before this one was asked for
                return loaded.tier
        with self._unfit.noting(digest):
            found = self._cache.load(digest)
            tier = self._wait_for_room(found.delta)
            started = time.perf_counter()
            loaded = self._attached(digest, found.delta, self.spec(found.delta))
        with self._changed:
            tier.put(digest, loaded, loaded.nbytes)
        self._observe(found, time.perf_counter() - started)
        return found.tier

    def _wait_for_room(self, delta: Delta) -> ByteBudget[Loaded]:
        """The tier for a delta, as soon as not all of it is held by requests."""
        tier = self._materialised if delta.lowrank else self._packed
        with self._changed:
            self._changed.wait_for(lambda: self._closing or not self._is_full_of_users(tier))
            if self._closing:
                raise UnavailableError("the server is stopping")
        return tier

    def _attached(self, name: str, delta: Delta, spec: TaskSpec) -> Loaded:
        """A delta on the device, in no tier yet."""
        kind = default_kind(delta.kind, delta.embedding is not None)
        attached = self._resident.attach(delta, materialised=bool(delta.lowrank))
        return Loaded(name, attached, self._model(delta, attached), delta.kind, kind, spec)

    def _remove(self, tier: ByteBudget[Loaded], loaded: Loaded) -> None:
        """Take a task out of its tier, and its values out of the weights. On the thread that owns the weights."""
        with self._changed:
            try:
                if self._resident.active is loaded.attached:
                    self._resident.revert()
            finally:
                tier.pop(loaded.digest)
                del self._trials[loaded.digest]
                self._changed.notify_all()

    def _observe(self, found: Found, attaching: float) -> None:
        self._metrics.load_seconds.labels(found.tier).observe(found.seconds + attaching)
        stages = (("fetch", found.fetch_seconds), ("decode", found.decode_seconds), ("attach", attaching))
        for stage, seconds in stages:
            self._metrics.load_stage_seconds.labels(stage).observe(seconds)

    def _materialise(self, digest: str) -> None:
        """Give a task its full tensors; the thread that owns the weights puts them in place of the packed ones."""
        try:
            self._move_to_full_tensors(digest)
        except (UnavailableError, CheckpointChangedError):
            return
        except Exception as error:
            self._stay_packed.add(digest)
            _log.warning("task %s could not be materialised and stays packed: %s", digest, error)

    def _move_to_full_tensors(self, digest: str) -> None:
        delta = self._cache.load(digest).delta
        attached = self._resident.attach(delta, materialised=True)
        model = self._model(delta, attached)

        def move() -> None:
            with self._changed:
                loaded = self._packed.get(digest)
                if loaded is None:
                    return
                if self._resident.active is loaded.attached:
                    self._resident.revert()
                self._packed.pop(digest)
                loaded.attached, loaded.model = attached, model
                self._materialised.put(digest, loaded, loaded.nbytes)

        self._on_owner(move).result()

    def _model(self, delta: Delta, attached: Attached) -> Grafted:
        return graft_split(self._resident.backbone, delta.architecture, delta.config, attached.head)

    # Which tasks deserve full tensors

    def _consider(self, loaded: Loaded) -> None:
        with self._changed:
            if loaded.attached.materialised or self._closing or not self._deserves(loaded):
                return
        self._promote(loaded.digest)

    def _deserves(self, loaded: Loaded) -> bool:
        tier, uses = self._materialised, self._uses(loaded.digest)
        if not tier.budget or uses < _HOT_USES or loaded.digest in self._stay_packed:
            return False  # asked at every request, and summing up a task's bytes walks all its tensors
        size = self._resident.bytes_of(loaded.attached.names)
        if size > tier.budget:
            return False
        return tier.nbytes + size <= tier.budget or uses > 2 * min(self._uses(other.digest) for other in tier)
