"""A replica put together: store, task table, tiers, engine. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ken_core import Checkpoint, DeltaFile, KenError, ResidentModel, deltafile, open_base
from ken_core.errors import CheckpointChangedError
from ken_core.tokenization import Encoded
from serving.config import Settings
from serving.cores import usable_cores
from serving.engine.engine import Engine, Timing
from serving.engine.fitness import Fitness
from serving.engine.scheduler import Limits
from serving.errors import ChangedBaseError, DeadlineError, StartError, TooLargeError, UnavailableError
from serving.pipelines import Parameters, Pipeline, pipeline_for
from serving.pipelines.base import (
    Prepared,
    Raw,
    TaskSpec,
    check,
    check_inputs,
    check_side,
    refusing_what_its_tokenizer_cannot_read,
)
from serving.routing.shadows import Shadows
from serving.security.signatures import Signature, TrustedKeys, check_genuine
from serving.store import Store
from serving.tasks import TaskTable, TaskWatch
from serving.telemetry.metrics import Metrics
from serving.telemetry.scrape import ScrapePort
from serving.telemetry.tracing import tracer_from_environment
from serving.tiers.cache import DeltaCache
from serving.tiers.device import Loaded
from serving.tiers.files import DeltaFiles
from serving.tiers.signature_check import SignatureCheck
from serving.workers.pool import WorkerPool
from serving.workers.steps import Steps, finish

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.02
_PRESENTED_AT_ONCE = 16_384
"""Floats whose presentation may hold up the event loop: a millisecond or two of ``tolist``."""
_NUMBERS_A_CHARACTER = 16
"""That are presented in the time in which a character is encoded."""
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Answer:
    """One output an input, the digest that made them, and how long the stages took."""

    digest: str
    kind: str
    outputs: list[Any]
    truncated: list[int]
    """Positions of inputs that were cut to the model's length."""
    tokens: int
    """Of all inputs, special ones included, padding not."""
    timing: Timing


class Service:
    """Everything a replica answers from.

    Raises:
        StartError: no store, no base, or no device as asked for; the message says which.
    """

    def __init__(self, settings: Settings, store_url: str) -> None:
        self.settings = settings
        self.replica = f"{os.uname().nodename}-{uuid.uuid4().hex[:8]}"
        self.metrics = Metrics(self.replica, settings.metric_tasks)
        self.draining = False
        self.ready = False
        self.in_flight = 0
        self._preparing = 0
        self.tracer = tracer_from_environment(self.replica)
        folder = settings.data_dir.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(store_url, settings.namespace)
        self.table = TaskTable(folder / f"tasks-{settings.namespace}.json")
        self._scrape = ScrapePort(self.metrics.registry, settings.metrics_address, settings.metrics_port)
        self._watch = TaskWatch(self.store, self.table, self.replica, self._store_changed, self._scrape.address)
        self.resident = _resident(settings)
        base = self.resident.checkpoint
        self._warn_about(base)
        self._trusted = TrustedKeys.read(settings.trusted_keys) if settings.trusted_keys else None
        signed = SignatureCheck(self._trusted, self.store, self.metrics) if self._trusted else None
        files = DeltaFiles(folder / "deltas", settings.disk_bytes, self.store, signed)
        on_cpu = self.resident.device.type == "cpu"
        threads = settings.threads or usable_cores()
        self.cache = DeltaCache(
            files,
            settings.host_bytes,
            base,
            self.resident.fingerprint.digest,
            worth_keeping=lambda delta: bool(delta.lowrank) or not on_cpu,
            threads=threads,
        )
        limits = Limits(settings.batch_rows, settings.batch_tokens, settings.max_wait_seconds)
        self.engine = Engine(
            self.resident,
            self.cache,
            self.metrics,
            limits,
            queue_rows=settings.queue_rows,
            packed_bytes=settings.packed_bytes,
            materialised_bytes=settings.materialised_bytes,
            threads=threads,
            verify_seconds=settings.verify_seconds,
        )
        self._fitness = Fitness(self.resident, self.engine)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one step would take every core otherwise
        self.workers = WorkerPool(max(2, min(threads // 2, _MOST_WORKERS)))
        self.shadows = Shadows(
            partial(self.predict, client="shadows"),
            self._is_busy,
            self.metrics.requests,
            settings.request_timeout_seconds,
        )
        self._add_gauges()

    def start(self) -> None:
        """Follow the store, warm the engine, attach the preloaded tasks."""
        self._watch.start()
        self.metrics.store_up.set(self._watch.store_up)
        if self._watch.store_up:
            for warning in self.store.warnings():
                _log.warning("%s", warning)
        deltafile.warm({t.dtype for t in self.resident.checkpoint.backbone_tensors.values() if t.is_floating_point()})
        self.engine.start()
        self.workers.start()
        for task in self.settings.preload:
            loaded = asyncio.run(self.engine.tiers.acquire(self.table.resolve(task)))
            self.engine.tiers.release(loaded)
        self.ready = True

    def stop(self) -> None:
        self.ready = False
        self._watch.stop()
        self.workers.stop()
        self.engine.stop()
        self._scrape.close()
        if self.tracer is not None:
            self.tracer.close()

    def check(self) -> None:
        """Raise unless this replica can answer; Ray replaces it then."""
        self.engine.check()

    def admit(self) -> None:
        """Raises `UnavailableError` while starting or draining."""
        if self.draining:
            raise UnavailableError("the server is stopping; another replica answers, or try again later")
        if not self.ready:
            raise UnavailableError("the server is starting; try again in a moment")

    async def drain(self, seconds: float) -> int:
        """Admit nothing more and wait for what was accepted; how many requests are left when time is up."""
        self.draining = True
        await self.shadows.clear()
        deadline = time.monotonic() + seconds
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        await asyncio.to_thread(self._watch.stop)
        return self.in_flight

    async def predict(
        self,
        digest: str,
        inputs: Sequence[object],
        parameters: Mapping[str, Any],
        timeout: float,
        kind: str | None = None,
        client: Hashable = None,
    ) -> Answer:
        """Answer a task's inputs.

        Args:
            inputs: plain JSON or `TokenIds`, unchecked.
            parameters: plain JSON, unchecked.
            timeout: seconds.
            kind: of the question; None: what the task answers by itself.
            client: who asks, and has a turn whenever others have had theirs.

        Raises:
            InvalidInputError: a kind the task cannot answer, inputs or parameters the kind does not take.
            TooLargeError: more text than one request may have.
            StoreError: no tier holds the delta and the store does not give it.
            ChangedBaseError: it is not on the device, and the base's file is not what it was.
            UnfitDeltaError: the delta can never be served here.
            RefusedDeltaError: the delta must be signed, and no trusted key did.
            DeadlineError, OverloadedError: see `Engine.run`.
        """
        started = time.monotonic()
        deadline = started + timeout
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + timeout):
                loaded = await self._acquire(digest, len(inputs))
                arrived = time.monotonic()
                try:
                    pipeline = pipeline_for(kind or loaded.kind, loaded.head)
                    checked = check(pipeline.parameters, parameters)
                    check_side(checked, loaded.spec)
                    items = check_inputs(pipeline, inputs)
                    with self._in_line(len(inputs)), refusing_what_its_tokenizer_cannot_read():
                        prepared = await self.workers.run(client, pipeline.prepare(items, loaded.spec, checked))
                    rows = [row for one in prepared for row in one.rows]
                    self._refuse_too_long(rows)
                    encoded = time.monotonic()
                    raws, timing = await self.engine.run(loaded, pipeline, rows, deadline)
                finally:
                    self.engine.tiers.release(loaded)
                timing.load, timing.tokenize = arrived - started, encoded - arrived
                presenting = _present(pipeline, prepared, raws, loaded.spec, checked)
                at_once = sum(raw.size for raw in raws) <= _PRESENTED_AT_ONCE
                with refusing_what_its_tokenizer_cannot_read():
                    outputs = finish(presenting) if at_once else await self.workers.run(client, presenting)
        except TimeoutError:
            raise DeadlineError(f"no answer within {timeout:g} s") from None
        truncated = [i for i, one in enumerate(prepared) if one.truncated]
        return Answer(digest, pipeline.kind, outputs, truncated, sum(map(len, rows)), timing)

    async def longest_input(self, digest: str) -> int:
        """Tokens that a task takes of one input; raises as `predict` does where it cannot be loaded."""
        loaded = await self._acquire(digest, 0)
        try:
            return loaded.spec.encoder.max_length
        finally:
            self.engine.tiers.release(loaded)

    def check_delta(self, path: Path) -> DeltaFile:
        """A delta of unknown origin, tried and found to answer; blocks.

        Raises:
            InvalidInputError: it cannot be served here.
            OverloadedError, DeadlineError, UnavailableError: there was no time to try it.
        """
        return self._fitness.check(path)

    def check_stored(self, digest: str) -> None:
        """Try a delta that the store holds, which nobody may have tried yet; once for each digest. Blocks.

        Raises:
            InvalidInputError, OverloadedError, DeadlineError, UnavailableError: as `check_delta`.
        """
        if self._fitness.found(digest):
            return
        path = self.cache.files.folder / f".{digest}.{uuid.uuid4().hex}.partial"
        try:
            self.store.fetch(digest, path)
            self._fitness.check(path)
        finally:
            path.unlink(missing_ok=True)

    def check_signed(self, digest: str, sent: Sequence[Signature], kept: Callable[[], Sequence[Signature]]) -> None:
        """Check a delta that is to be published, before anything of it is read.

        Args:
            sent: signatures sent along, all of which must be of this delta.
            kept: others that count too, looked up only where somebody must have signed it.

        Raises:
            InvalidInputError: a signature sent along is not of this delta.
            UntrustedDeltaError: no trusted key signed it, where such keys are set.
        """
        check_genuine(digest, sent)
        if self._trusted is not None:
            self._trusted.check(digest, (*sent, *kept()))

    def _is_busy(self) -> bool:
        """Whether more waits than the next forward pass takes."""
        return self.draining or self.engine.waiting + self._preparing > self.settings.batch_rows

    def _refuse_too_long(self, rows: Sequence[Encoded]) -> None:
        tokens, most = sum(map(len, rows)), self.settings.max_tokens
        if tokens > most:
            raise TooLargeError(
                f"the request has {tokens} tokens, at most {most} are allowed in one; send fewer or shorter inputs"
            )

    async def _acquire(self, digest: str, inputs: int) -> Loaded:
        """The task on the device."""
        try:
            with self._in_line(inputs):
                return await self.engine.tiers.acquire(digest)
        except CheckpointChangedError as error:
            raise ChangedBaseError(f"delta {digest} cannot be loaded: {error}") from error

    @contextmanager
    def _in_line(self, inputs: int) -> Iterator[None]:
        """Count inputs that wait for their task or their turn as much as those that wait for a batch.

        Raises:
            OverloadedError: so many are too many.
        """
        self.engine.refuse_if_full(self._preparing, inputs)
        self._preparing += inputs
        try:
            yield
        finally:
            self._preparing -= inputs

    def _store_changed(self, up: bool) -> None:
        self.metrics.store_up.set(up)

    def _warn_about(self, base: Checkpoint) -> None:
        memory = sum(t.nbytes for t in base.backbone_tensors.values())
        _log.info(
            "base %s, %.0f MB resident, fingerprint %s", base.name, memory / 1e6, self.resident.fingerprint.digest
        )

    def _add_gauges(self) -> None:
        self.metrics.resident_bytes.set(self.resident.nbytes)
        self.metrics.gauge("ken_queue_rows", "Inputs waiting for a forward pass", lambda: self.engine.waiting)
        explained = "Inputs waiting for their task to be on the device, or for their turn to be encoded"
        self.metrics.gauge("ken_loading_rows", explained, lambda: self._preparing)
        self.metrics.gauge("ken_requests_in_flight", "Requests accepted and not answered", lambda: self.in_flight)
        self.metrics.gauge(
            "ken_base_file_changed",
            "Whether the base's file was found to hold other weights than the resident ones",
            lambda: self.resident.checkpoint.files.trouble is not None,
        )
        self.metrics.gauge_by("ken_cache_bytes", "Bytes of deltas by tier", "tier", self._tier_bytes)

    def _tier_bytes(self) -> dict[str, float]:
        return {
            "disk": self.cache.files.nbytes,
            "host": self.cache.host_nbytes,
            "packed": self.engine.tiers.packed_nbytes,
            "materialised": self.engine.tiers.materialised_nbytes,
        }


def _present(
    pipeline: Pipeline, prepared: Sequence[Prepared], raws: Sequence[Raw], spec: TaskSpec, parameters: Parameters
) -> Steps[list[Any]]:
    left, outputs = iter(raws), []
    for one in prepared:
        ours = list(islice(left, len(one.rows)))
        yield sum(raw.size for raw in ours) // _NUMBERS_A_CHARACTER
        outputs.append(pipeline.present(one, ours, spec, parameters))
    return outputs


def _resident(settings: Settings) -> ResidentModel:
    """The base on the device asked for, warnings of the start turned into one clear error."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise StartError(f"device {device!r} was asked for, but torch sees no CUDA device here")
    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        return ResidentModel(open_base(settings.base), device, dtype)
    except KenError as error:
        raise StartError(f"the base cannot be served: {error}") from error
