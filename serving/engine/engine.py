"""The one thread that owns the weights: it drops what is late, chooses a batch, runs it, hands out the results.

Deltas are loaded and attached on other threads; tokenization and presentation have threads of their own. What a batch
consists of, and how it runs, its executor knows (`serving.engine.executor`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch

from ken_core import CheckpointChangedError, KenError, PoisonedError, ResidentModel
from ken_core.mixing.model import MixedModel
from ken_core.tokenization import Encoded, collate
from serving.admission import Admission
from serving.engine.batch import Batch, Group
from serving.engine.costs import BatchCost
from serving.engine.exchange import Exchange
from serving.engine.executor import Executor, Ran
from serving.engine.integrity import IntegrityCheck
from serving.engine.line import Line, Row
from serving.engine.mixed import Mixed
from serving.engine.tickets import Ticket, Timing
from serving.engine.window import Limits
from serving.errors import (
    ChangedBaseError,
    DeadlineError,
    InternalError,
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


@dataclass(frozen=True)
class _Asked:
    """A row in line: what it asks of which task, and where its result goes."""

    ticket: Ticket
    index: int
    encoded: Encoded
    task: Loaded
    pipeline: Pipeline


class Engine:
    """Runs the resident model.

    Args:
        resident: the weights; from `start` on they belong to the engine's thread.
        cache: gives decoded deltas.
        limits: of batches.
        admission: refuses rows for which the line has no room.
        packed_bytes, materialised_bytes: budgets of the tasks on the device (`serving.tiers.device`).
        threads: CPU threads to compute with.
        mixed: runs batches that mix tasks; None: every batch is of one task.
        verify_seconds: from one check of the idle base to the next.
    """

    def __init__(
        self,
        resident: ResidentModel,
        cache: DeltaCache,
        metrics: Metrics,
        limits: Limits | None = None,
        admission: Admission | None = None,
        packed_bytes: int = 2 << 30,
        materialised_bytes: int = 0,
        threads: int = 1,
        verify_seconds: float = 300.0,
        mixed: MixedModel | None = None,
    ) -> None:
        self._resident = resident
        self._metrics = metrics
        self._admission = admission or Admission()
        self._threads = threads
        self._changed = threading.Condition()
        self._line: Line[_Asked] = Line()
        self._calls: list[Callable[[], None]] = []
        self._stopping = False
        self.tiers = DeviceTiers(resident, cache, metrics, packed_bytes, materialised_bytes, self.call, mixed)
        self._executor = self._executor_for(limits or Limits(), mixed)
        self._integrity = IntegrityCheck(resident, metrics, verify_seconds)
        self._thread = threading.Thread(target=self._loop, name="ken-engine", daemon=True)

    def _executor_for(self, limits: Limits, mixed: MixedModel | None) -> Executor:
        resident, metrics, cost = self._resident, self._metrics, BatchCost()
        exchange = Exchange(resident, self.tiers.renew, limits, cost, metrics)
        if mixed is None:
            return exchange
        return Mixed(resident, mixed, self.tiers.base_encoder.pad_id, exchange, limits, cost, metrics)

    @property
    def waiting(self) -> int:
        """Rows in line, abandoned ones that are not dropped yet among them."""
        return len(self._line)

    @property
    def wanted(self) -> int:
        """Rows in line that are not abandoned."""
        with self._changed:
            return self._line.wanted

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

    async def answer(
        self, task: Loaded, pipeline: Pipeline, rows: Sequence[Encoded], deadline: float
    ) -> tuple[list[Raw], Timing]:
        """Wait for the results of encoded rows that one kind asks of one task.

        Args:
            deadline: on the clock of `time.monotonic`.

        Raises:
            OverloadedError: the line is full; with the seconds that what waits will take.
            DeadlineError: the deadline passed first.
        """
        ticket = Ticket.of(len(rows))
        now, key = time.monotonic(), Group(task, pipeline, rows).key
        asked = [Row(key, len(e), now, deadline, _Asked(ticket, i, e, task, pipeline)) for i, e in enumerate(rows)]
        with self._changed:
            if self._stopping:
                raise UnavailableError("the server is stopping")
            self._admission.check_line(self, len(asked))
            for row in asked:
                self._line.add(row)
            self._changed.notify()
        try:
            await ticket.done
        finally:
            with self._changed:
                if time.monotonic() < deadline:  # later ones are dropped, and counted, as expired
                    self._line.abandon(asked)
        return [r for r in ticket.results if r is not None], ticket.timing

    def backlog_seconds(self) -> float:
        """How long what is in line will take, at least 1 s: when to try again."""
        with self._changed:
            return max(1.0, round(self._executor.backlog_seconds(self._line), 1))

    # On the engine's thread

    def _loop(self) -> None:
        torch.set_num_threads(self._threads)
        _limit_numba_threads(self._threads)
        with torch.inference_mode():
            while self._step():
                pass
            self._try_revert()

    def _step(self) -> bool:
        """One turn: calls, then one batch. False when stopping and nothing is left."""
        with self._changed:
            self._wait_for_work()
            calls, self._calls = self._calls, []
            now = time.monotonic()
            late = self._line.drop(now)
            rows = self._executor.choose(self._line, now)
            self._line.take(rows, now)
        for call in calls:
            call()
        self._refuse(late)
        if rows:
            self._run(rows, now)
            self._integrity.disturb(time.monotonic())
        elif not calls:
            self._integrity.step(now)
        return bool(rows or calls or late) or not self._stopping

    def _wait_for_work(self) -> None:
        """Until there is something to do, be it the next step of checking the idle base."""
        while not (self._calls or self._line or self._stopping):
            if not self._changed.wait(self._integrity.seconds_until_due(time.monotonic())):
                return

    def _run(self, rows: list[Row[_Asked]], taken: float) -> None:
        """Run rows as one batch, and hand out what came of each of its groups."""
        by_key: dict[Hashable, list[Row[_Asked]]] = {}
        for row in rows:
            by_key.setdefault(row.key, []).append(row)
        groups = list(by_key.values())
        ran = self._executor.run(Batch([_group(group) for group in groups]))
        for group, outcome in zip(groups, ran.outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(group, outcome)
            else:
                _hand_out(group, outcome, taken, ran)

    def _fail(self, rows: list[Row[_Asked]], error: Exception) -> None:
        """Answer a group's requests with its error."""
        if isinstance(error, PoisonedError):
            self._metrics.poisoned.set(1)
            error = UnavailableError("this replica's weights are in an unknown state; it is being replaced")
        elif isinstance(error, CheckpointChangedError):
            error = ChangedBaseError(str(error))
        elif not isinstance(error, ServingError):
            _log.exception("a batch of %d inputs failed", len(rows), exc_info=error)
        if not isinstance(error, KenError):
            digest, unsaid = rows[0].payload.task.digest, error
            error = InternalError(f"the model of delta {digest} failed on these inputs; the server's log says how")
            error.__cause__ = unsaid
        for ticket in {id(r.payload.ticket): r.payload.ticket for r in rows}.values():
            ticket.resolve(error)

    def _refuse(self, rows: list[Row[_Asked]]) -> None:
        """Answer requests whose deadline passed while they waited, or that nobody waits for."""
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


def _group(rows: Sequence[Row[_Asked]]) -> Group:
    """Rows of one key as a group."""
    first = rows[0].payload
    return Group(first.task, first.pipeline, [row.payload.encoded for row in rows])


def _hand_out(rows: Sequence[Row[_Asked]], results: Sequence[Raw], taken: float, ran: Ran) -> None:
    for row, result in zip(rows, results, strict=True):
        ticket = row.payload.ticket
        ticket.timing.at_least(taken - row.arrived, ran.switching, ran.computing)
        ticket.timing.mixed |= ran.mixed
        ticket.give(row.payload.index, result)


def _limit_numba_threads(threads: int) -> None:
    import numba

    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set when numba is imported
    numba.set_num_threads(max(1, min(threads, most)))
