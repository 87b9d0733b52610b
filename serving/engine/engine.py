"""The one thread that owns the weights: schedule, activate, run, answer.

Deltas are loaded and attached on other threads; tokenization and presentation have some of their own. A batch
holds rows of one delta, which is known here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ken_core import CheckpointChangedError, ExchangeError, KenError, PoisonedError, ResidentModel
from ken_core.tokenization import Encoded, collate
from serving.engine.integrity import IntegrityCheck
from serving.engine.scheduler import Limits, Row, Scheduler
from serving.errors import (
    ChangedBaseError,
    DeadlineError,
    InternalError,
    OverloadedError,
    ServingError,
    UnavailableError,
)
from serving.pipelines.base import Pipeline, Raw
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache
from serving.tiers.device import DeviceTiers
from serving.tiers.loaded import Loaded

_log = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass
class Timing:
    """Seconds a request spent in each stage: until its task was on the device, until its inputs were rows, and in its
    slowest batch."""

    load: float = 0.0
    tokenize: float = 0.0
    queue: float = 0.0
    swap: float = 0.0
    model: float = 0.0

    def stages(self) -> tuple[tuple[str, float], ...]:
        names = ("load", "tokenize", "queue", "swap", "model")
        return tuple((name, getattr(self, name)) for name in names)

    def at_least(self, queue: float, swap: float, model: float) -> None:
        self.queue, self.swap, self.model = (
            max(self.queue, queue),
            max(self.swap, swap),
            max(self.model, model),
        )


@dataclass
class Ticket:
    """A request's rows in the engine; `done` resolves on the caller's event loop, without polling."""

    results: list[Raw | None]
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop
    timing: Timing = field(default_factory=Timing)
    missing: int = 0

    def resolve(self, error: BaseException | None = None) -> None:
        def finish() -> None:
            if self.done.done():
                return
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(finish)
        except RuntimeError:
            _log.debug("the event loop that asked is closed")


@dataclass(frozen=True)
class _Work:
    ticket: Ticket
    index: int
    encoded: Encoded
    loaded: Loaded
    pipeline: Pipeline


class Engine:
    """Runs the resident model.

    Args:
        resident: the weights; from `start` on they belong to the engine's thread.
        cache: gives decoded deltas.
        limits: of batches.
        queue_rows: rows that may wait.
        packed_bytes, materialised_bytes: budgets of the tasks on the device (`serving.tiers.device`).
        threads: CPU threads to compute with.
        verify_seconds: from one check of the idle base to the next.
    """

    def __init__(
        self,
        resident: ResidentModel,
        cache: DeltaCache,
        metrics: Metrics,
        limits: Limits | None = None,
        queue_rows: int = 2048,
        packed_bytes: int = 2 << 30,
        materialised_bytes: int = 0,
        threads: int = 1,
        verify_seconds: float = 300.0,
    ) -> None:
        self._resident = resident
        self._metrics = metrics
        self._limits = limits or Limits()
        self._queue_rows = queue_rows
        self._threads = threads
        self._changed = threading.Condition()
        self._scheduler: Scheduler[_Work] = Scheduler(self._limits)
        self._calls: list[Callable[[], None]] = []
        self._stopping = False
        self._active_key: Hashable = None
        self.tiers = DeviceTiers(resident, cache, metrics, packed_bytes, materialised_bytes, self.call)
        self._integrity = IntegrityCheck(resident, metrics, verify_seconds)
        self._thread = threading.Thread(target=self._run, name="ken-engine", daemon=True)

    @property
    def waiting(self) -> int:
        """Rows in line."""
        return len(self._scheduler)

    def start(self) -> None:
        """Start the thread; returns when a forward pass has warmed every kernel."""
        self._thread.start()
        self.call(self._warm).result()

    def stop(self) -> None:
        """Let what is queued finish, revert to the base, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.tiers.close()

    def check(self) -> None:
        """Raise unless the engine can answer: `PoisonedError`, or `UnavailableError` if its thread is gone."""
        if self._resident.poisoned:
            raise PoisonedError(self._resident.poisoned)
        if not self._thread.is_alive():
            raise UnavailableError("the engine's thread has ended")

    def call(self, work: Callable[[], R]) -> Future[R]:
        """Run something on the thread that owns the weights, between two batches."""
        future: Future[R] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            if self._stopping:
                raise UnavailableError("the server is stopping")
            self._calls.append(run)
            self._changed.notify()
        return future

    def verify(self) -> Future[list[str]]:
        """Names of resident tensors that are not bit for bit the base's."""
        return self.call(self._integrity.verify)

    def verify_file(self) -> list[str]:
        """Names of tensors whose values in the base's file are not the base's any more; hashes all of them."""
        return self._resident.checkpoint.differing()

    async def run(
        self, loaded: Loaded, pipeline: Pipeline, rows: Sequence[Encoded], deadline: float
    ) -> tuple[list[Raw], Timing]:
        """Run encoded rows of one task through one kind's forward pass and wait for their results.

        Args:
            deadline: on the clock of `time.monotonic`.

        Raises:
            OverloadedError: the queue is full; with the time the backlog will take.
            DeadlineError: the deadline passed first.
        """
        loop = asyncio.get_running_loop()
        ticket = Ticket([None] * len(rows), loop.create_future(), loop, missing=len(rows))
        now = time.monotonic()
        key = (loaded.digest, pipeline.kind)
        waiting = [Row(key, len(e), now, deadline, _Work(ticket, i, e, loaded, pipeline)) for i, e in enumerate(rows)]
        with self._changed:
            if self._stopping:
                raise UnavailableError("the server is stopping")
            self.refuse_if_full(0, len(rows))
            for row in waiting:
                self._scheduler.add(row)
            self._changed.notify()
        try:
            await ticket.done
        finally:
            with self._changed:
                if time.monotonic() < deadline:  # later ones are dropped, and counted, as expired
                    self._scheduler.abandon(waiting)
        return [r for r in ticket.results if r is not None], ticket.timing

    def refuse_if_full(self, elsewhere: int, rows: int) -> None:
        """Raise `OverloadedError` if so many rows more, beside those in line here and elsewhere, are too many.

        A request larger than the whole line is taken when nothing waits.
        """
        with self._changed:
            waiting = self._scheduler.wanted + elsewhere
            if waiting and waiting + rows > self._queue_rows:
                seconds = self.backlog_seconds()
                raise OverloadedError(f"{waiting} inputs wait already; try again in {seconds:g} s", seconds)

    def backlog_seconds(self) -> float:
        """How long what is in line will take, at least 1 s: when to try again."""
        with self._changed:
            return max(1.0, round(self._scheduler.backlog_seconds(), 1))

    # On the engine's thread

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        _limit_numba_threads(self._threads)
        with torch.inference_mode():
            while self._step():
                pass
            self._try_revert()

    def _step(self) -> bool:
        """One turn: calls, then one batch. False when stopping and nothing is left."""
        with self._changed:
            while not (self._calls or self._scheduler or self._stopping):
                if not self._changed.wait(self._integrity.seconds_until_due(time.monotonic())):
                    break
            calls, self._calls = self._calls, []
            now = time.monotonic()
            dropped = self._scheduler.drop(now)
            batch = self._scheduler.next_batch(now, self._active_key)
        for call in calls:
            call()
        self._drop(dropped)
        if batch:
            self._serve(batch, now)
            self._integrity.disturb(time.monotonic())
        elif not calls:
            self._integrity.step(now)
        return bool(batch or calls or dropped) or not self._stopping

    def _serve(self, batch: list[Row[_Work]], taken: float) -> None:
        loaded, pipeline = batch[0].payload.loaded, batch[0].payload.pipeline
        try:
            swap = self._activate(loaded)
            self._active_key = batch[0].key
            started = time.perf_counter()
            inputs = collate([r.payload.encoded for r in batch], loaded.spec.encoder.pad_id, self._resident.device)
            results = pipeline.forward(loaded.model, inputs)
            seconds = time.perf_counter() - started
        except Exception as error:
            self._fail(batch, error)
            return
        padded = len(batch) * max(r.tokens for r in batch)
        self._scheduler.costs.learn_batch(padded, seconds)
        self._metrics.batch_rows.observe(len(batch))
        for row, result in zip(batch, results, strict=True):
            ticket = row.payload.ticket
            ticket.results[row.payload.index] = result
            ticket.timing.at_least(taken - row.arrived, swap, seconds)
            ticket.missing -= 1
            if ticket.missing == 0:
                ticket.resolve()

    def _activate(self, loaded: Loaded) -> float:
        """Make the weights answer for a task; seconds it took, 0 if they did already."""
        if self._resident.active is loaded.attached:
            return 0.0
        started = time.perf_counter()
        self._active_key = None
        try:
            self._resident.activate(loaded.attached)
        except ExchangeError as error:
            _log.warning("%s; attaching %s again", error, loaded.digest)
            self.tiers.renew(loaded)
            self._resident.activate(loaded.attached)
        seconds = time.perf_counter() - started
        self._scheduler.costs.learn_switch(seconds)
        self._metrics.swaps.inc()
        self._metrics.swap_seconds.observe(seconds)
        return seconds

    def _fail(self, batch: list[Row[_Work]], error: Exception) -> None:
        if isinstance(error, PoisonedError):
            self._metrics.poisoned.set(1)
            error = UnavailableError("this replica's weights are in an unknown state; it is being replaced")
        elif isinstance(error, CheckpointChangedError):
            error = ChangedBaseError(str(error))
        elif not isinstance(error, ServingError):
            _log.exception("a batch of %d inputs failed", len(batch), exc_info=error)
        if not isinstance(error, KenError):
            digest, unsaid = batch[0].payload.loaded.digest, error
            error = InternalError(f"the model of delta {digest} failed on these inputs; the server's log says how")
            error.__cause__ = unsaid
        for ticket in {id(r.payload.ticket): r.payload.ticket for r in batch}.values():
            ticket.resolve(error)

    def _drop(self, rows: list[Row[_Work]]) -> None:
        for row in rows:
            self._metrics.dropped.labels("abandoned" if row.abandoned else "expired").inc()
            row.payload.ticket.resolve(DeadlineError("the deadline passed while the request waited its turn"))

    def _warm(self) -> None:
        """One forward pass of the base, so that the first request pays for no start-up of the backend."""
        inputs = collate(self.tiers.base_encoder(["warm"]), self.tiers.base_encoder.pad_id, self._resident.device)
        self._resident.backbone(**inputs)

    def _try_revert(self) -> None:
        try:
            self._resident.revert()
        except Exception:
            _log.exception("the base could not be restored at the end")


def _limit_numba_threads(threads: int) -> None:
    import numba

    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set when numba is imported
    numba.set_num_threads(max(1, min(threads, most)))
