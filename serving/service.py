"""A replica, put together from its parts: store, task table, tiers, engine. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from ken_core import KenError, ResidentModel, deltafile, open_base
from ken_core.decoding.choice import AnyDecoder, decoder_of
from ken_core.decoding.packed import PackedDecoder
from ken_core.errors import UndecodableError
from ken_core.mixing.model import MixedModel
from ken_core.mixing.steps import MixedSteps
from serving.admission import Admission, AdmissionLimits
from serving.config import Settings
from serving.engine.cores import concurrent_batches, usable_cores
from serving.engine.engine import Engine
from serving.engine.window import Limits
from serving.errors import StartError, StoreError, UnavailableError
from serving.generation.generator import Generator
from serving.replica.continuing import Continuing
from serving.replica.fitness import Fitness
from serving.replica.gauges import add_gauges, add_generation_gauges, add_placement_gauges
from serving.replica.generating import Generating
from serving.replica.inference import Inference
from serving.replica.observing import Observer
from serving.replica.overlaps import Overlaps
from serving.replica.placing import Placing
from serving.replica.slot import Slot
from serving.replica.telling_swaps import TellingSwaps
from serving.replica.vetting import Vetting
from serving.routing.shadows import Shadows
from serving.security.signatures import TrustedKeys
from serving.store import Store
from serving.store.urls import printable, store_name
from serving.tasks import TaskTable, TaskWatch
from serving.telemetry.metrics import Metrics
from serving.telemetry.scrape import ScrapePort
from serving.telemetry.tracing import tracer_from_environment
from serving.tiers.cache import DeltaCache
from serving.tiers.files import DeltaFiles
from serving.tiers.merges import Merges
from serving.tiers.signature_check import SignatureCheck
from serving.workers.pool import WorkerPool

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.02
_RETIRE_SECONDS = 1.0
"""For a store that does not answer to hear that the replica ends, when the time of a drain is up."""
_LAST_WORDS_SECONDS = 1.0
"""For streams to say that their texts will not be completed."""
_MOST_WORKERS = 8


class Service:
    """The parts of one replica, and their start and end.

    Raises:
        StartError: there is no store, no base, or no such device; the message says which.

    Args:
        serve: the replica's id in Ray Serve; empty without Serve.
    """

    def __init__(self, settings: Settings, store_url: str, serve: str = "") -> None:
        self.settings = settings
        self.store = Store(store_url, settings.namespace)
        self._slot = Slot(printable(store_url), settings.namespace, self._is_elsewhere)
        self.replica = self._slot.name
        folder = settings.data_dir.expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # the store has everything that would be kept there
            _log.error("the data folder cannot be made, so nothing is kept over a restart: %s", error)
        threads = settings.threads or usable_cores()
        self.metrics = Metrics(self.replica, settings.metric_tasks)
        self._scrape = ScrapePort(self.metrics.registry, settings.metrics_address, settings.metrics_port)
        self.tracer = tracer_from_environment(self.replica)
        # The store, and what it says of tasks
        self.table = TaskTable(folder / f"tasks-{settings.namespace}.json", store_name(store_url))
        self.watch = TaskWatch(self.store, self.table, self.replica, self.metrics.store_up.set, self._scrape.address)
        # The base, and the deltas on it
        self.resident = _resident(settings)
        trusted = TrustedKeys.read(settings.trusted_keys) if settings.trusted_keys else None
        signed = SignatureCheck(trusted, self.store, self.metrics) if trusted else None
        self.cache = _cache(settings, folder, self.store, self.resident, signed, threads)
        # Requests
        self.admission = Admission(_admission_limits(settings))
        decoder, why_not = _decoder(self.resident)
        mixing = _mixing(settings, self.resident, decoder)
        self.engine = _engine(
            settings, self.resident, self.cache, self.metrics, self.admission, threads, mixing, str(why_not or "")
        )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # otherwise one step would take every core
        self.workers = WorkerPool(max(2, min(threads // 2, _MOST_WORKERS)))
        self.generator = None
        if decoder is not None:
            self.generator = _generator(settings, self.resident, self.engine, decoder, mixing[1], self.metrics)
        self._continuing = continuing = Continuing(self.generator, why_not, self.engine, self.workers, self.admission)
        self.predict = Inference(self.engine, self.workers, self.admission, continuing)
        self.generate = Generating(self.predict, continuing)
        self.shadows = Shadows(
            partial(self.predict, client="shadows"),
            partial(self.admission.is_busy, self.engine),
            self.metrics.requests,
            settings.request_timeout_seconds,
        )
        self.placing = Placing(
            self.store,
            self.table,
            self.engine.tiers,
            self.cache.files,
            self.admission,
            self.metrics,
            self.replica,
            serve,
            room=settings.packed_bytes,
            seconds=settings.placement_seconds,
            follows=settings.placement == "auto",
        )
        self.vetting = Vetting(Fitness(self.resident, self.engine), self.store, self.cache.files.folder, trusted)
        self._telling_swaps = TellingSwaps(self.metrics.swap_log, self.store, self.table, self.replica)
        self.observer = Observer(self.store, self.table, self.metrics, self.replica)
        self.overlaps = Overlaps(self.cache.files, _shapes(self.resident))
        add_gauges(self.metrics, self.resident, self.cache, self.engine, self.admission, self.watch)
        if self.generator is not None:
            add_generation_gauges(self.metrics, self.generator)
        add_placement_gauges(self.metrics, self.placing, self.engine.tiers, self.table, settings.metric_tasks)

    def _is_elsewhere(self, name: str) -> bool:
        try:
            return self.store.replicas.is_elsewhere(name)
        except StoreError:  # nobody can be asked, and there is nobody to be mistaken for
            return False

    def start(self) -> None:
        """Follow the store, warm the engine, put preloaded and placed tasks on the device, take requests."""
        self.watch.start()
        self.metrics.store_up.set(self.watch.store_up)
        if self.watch.store_up:
            for warning in self.store.connection.warnings():
                _log.warning("%s", warning)
        deltafile.warm({t.dtype for t in self.resident.checkpoint.backbone_tensors.values() if t.is_floating_point()})
        self.engine.start()
        self.workers.start()
        self._continuing.start()
        self._preload([self.table.resolve(task) for task in self.settings.preload])
        self._telling_swaps.start()
        self.placing.start()
        if self.watch.store_up:
            self.placing.wait_until_loaded()
        self.engine.tiers.giving_back.now()
        self.admission.ready = True
        self.placing.report_now()

    def _preload(self, digests: Sequence[str]) -> None:
        """Put tasks on the device, one after the other. On a thread of its own: Ray calls from within an event loop."""

        async def run() -> None:
            for digest in digests:
                self.engine.tiers.release(await self.engine.tiers.acquire(digest))

        if digests:
            with ThreadPoolExecutor(1, "ken-preload") as thread:
                thread.submit(asyncio.run, run()).result()

    def stop(self) -> None:
        """End all threads and close the ports. The engine answers the rows in its line first."""
        self.admission.ready = False
        self.placing.retire()
        self._telling_swaps.stop()
        self.watch.stop()
        self.workers.stop()
        self._continuing.stop()
        self.engine.stop()
        self._continuing.close()
        self._scrape.close()
        self.observer.close()
        self.overlaps.close()
        if self.tracer is not None:
            self.tracer.close()
        self._slot.release()

    def check(self) -> None:
        """Raise if this replica cannot answer any more; Ray then replaces it. See `Engine.check`."""
        self.engine.check()

    async def drain(self, seconds: float) -> int:
        """Take no further requests and wait for those in flight. Returns how many are left when the time is up.

        Texts that are not complete then are given up, and their streams say so.
        """
        self.admission.draining = True
        retiring = asyncio.create_task(asyncio.to_thread(self.placing.retire))
        await self.shadows.clear()
        deadline = time.monotonic() + seconds
        await self._answered(deadline)
        left = self.admission.requests
        if left and self.generator is not None:
            self.generator.abort(UnavailableError("the server stopped before the text was complete; ask again"))
            await self._answered(time.monotonic() + _LAST_WORDS_SECONDS)
        await asyncio.wait([retiring], timeout=max(_RETIRE_SECONDS, deadline - time.monotonic()))
        await asyncio.to_thread(self.watch.stop)
        return left

    async def _answered(self, deadline: float) -> None:
        """Wait until no request is in flight, or the time of `time.monotonic` is there."""
        while self.admission.requests and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)

    async def longest_input(self, digest: str) -> int:
        """The most tokens that a task takes of one input. Raises as `Inference.on_device` does."""
        async with self.predict.on_device(digest, 0) as loaded:
            return loaded.spec.encoder.max_length

    async def kind_of(self, digest: str) -> str:
        """The kind that a task answers by itself. Raises as `Inference.on_device` does."""
        async with self.predict.on_device(digest, 0) as loaded:
            return loaded.kind


def _resident(settings: Settings) -> ResidentModel:
    """The base on the device that the settings ask for; whatever goes wrong is one clear error."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise StartError(f"device {device!r} was asked for, but torch sees no CUDA device here")
    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        resident = ResidentModel(open_base(settings.base), device, dtype)
    except KenError as error:
        raise StartError(f"the base cannot be served: {error}") from error
    base = resident.checkpoint
    memory = sum(t.nbytes for t in base.backbone_tensors.values())
    _log.info("base %s, %.0f MB resident, fingerprint %s", base.name, memory / 1e6, resident.fingerprint.digest)
    return resident


def _shapes(resident: ResidentModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in resident.checkpoint.backbone_tensors.items()}


def _cache(
    settings: Settings,
    folder: Path,
    store: Store,
    resident: ResidentModel,
    signed: SignatureCheck | None,
    threads: int,
) -> DeltaCache:
    on_cpu = resident.device.type == "cpu"
    return DeltaCache(
        # a file in memory is a delta in host memory too, for as long as it takes to decode it
        DeltaFiles(folder / "deltas", settings.disk_bytes, store, signed, memory_budget=settings.host_bytes),
        settings.host_bytes,
        resident.checkpoint,
        resident.fingerprint.digest,
        worth_keeping=lambda delta: not on_cpu or (bool(delta.lowrank) and delta.selection.method != "svd"),
        threads=threads,
        merges=Merges(settings.max_merges, settings.merges_per_minute),
    )


def _engine(
    settings: Settings,
    resident: ResidentModel,
    cache: DeltaCache,
    metrics: Metrics,
    admission: Admission,
    threads: int,
    mixing: _Mixing,
    why_no_texts: str,
) -> Engine:
    mixed, steps = mixing
    return Engine(
        resident,
        cache,
        metrics,
        Limits(settings.batch_rows, settings.batch_tokens, settings.max_wait_seconds),
        admission=admission,
        packed_bytes=settings.packed_bytes,
        materialised_bytes=settings.materialised_bytes,
        threads=threads,
        verify_seconds=settings.verify_seconds,
        mixed=mixed,
        steps=steps,
        batches=concurrent_batches(settings.concurrent_batches, threads, resident.device.type),
        why_no_texts=why_no_texts,
    )


def _decoder(resident: ResidentModel) -> tuple[AnyDecoder | None, UndecodableError | None]:
    """How texts are decoded; or why the base generates none."""
    try:
        return decoder_of(resident.checkpoint.backbone), None
    except UndecodableError as error:
        return None, error


_Mixing = tuple[MixedModel | None, MixedSteps | None]
"""What runs batches, and decode steps, of many tasks."""


def _mixing(settings: Settings, resident: ResidentModel, decoder: AnyDecoder | None) -> _Mixing:
    if settings.mixed != "auto":
        return None, None
    mixed = MixedModel(resident)
    return mixed, MixedSteps(resident, mixed, decoder) if isinstance(decoder, PackedDecoder) else None


def _generator(
    settings: Settings,
    resident: ResidentModel,
    engine: Engine,
    decoder: AnyDecoder,
    steps: MixedSteps | None,
    metrics: Metrics,
) -> Generator:
    return Generator(
        engine,
        resident,
        decoder,
        metrics,
        room=settings.kv_bytes,
        rows=settings.batch_rows,
        tokens=settings.batch_tokens,
        queue=settings.queue_rows,
        quantum=settings.quantum_seconds,
        steps=steps,
    )


def _admission_limits(settings: Settings) -> AdmissionLimits:
    return AdmissionLimits(
        settings.max_requests,
        settings.max_inputs,
        settings.max_tokens,
        settings.queue_rows,
        settings.batch_rows,
        settings.max_tasks_per_request,
    )
