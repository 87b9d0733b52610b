"""The threads that run the model: each drops what is late, chooses a batch, runs it, hands out the results.

Several batches run at once while all of them only read the weights (`serving.engine.crew`). Deltas are loaded and
attached on other threads; tokenization and presentation have threads of their own. What a batch consists of, and how it
runs, its executor knows (`serving.engine.executor`).
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

from ken_core import PoisonedError, ResidentModel
from ken_core.mixing.model import MixedModel
from ken_core.tokenization import Encoded, collate
from serving.admission import Admission
from serving.engine.batch import Batch, Group
from serving.engine.costs import BatchCost
from serving.engine.crew import Crew, Turn
from serving.engine.exchange import Exchange
from serving.engine.executor import Executor, Ran
from serving.engine.integrity import IntegrityCheck
from serving.engine.line import Line, Row
from serving.engine.mixed import Mixed
from serving.engine.quanta import Quanta
from serving.engine.tickets import Ticket, Timing
from serving.engine.window import Limits
from serving.errors import DeadlineError, UnavailableError
from serving.pipelines.base import Pipeline, Raw
from serving.pipelines.model_failure import told
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache
from serving.tiers.device import DeviceTiers
from serving.tiers.loaded import Loaded

_log = logging.getLogger(__name__)
_BUSY_SECONDS = 1.0
"""From one look to the next whether the base is idle."""

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
        resident: the weights; from `start` on they belong to the engine's threads.
        cache: gives decoded deltas.
        limits: of batches.
        admission: refuses rows for which the line has no room.
        packed_bytes, materialised_bytes: budgets of the tasks on the device (`serving.tiers.device`).
        threads: CPU threads to compute with.
        batches: how many batches may run at once, each on an equal share of the CPU threads.
        mixed: runs batches that mix tasks; None: every batch is of one task.
        verify_seconds: from one check of the idle base to the next.
        why_no_texts: why the base generates no texts; empty: it does.
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
        batches: int = 1,
        why_no_texts: str = "",
    ) -> None:
        self._resident = resident
        self._metrics = metrics
        self._admission = admission or Admission()
        self._crew = Crew(batches, threads)
        self._lock = self._crew.lock
        self._line: Line[_Asked] = Line()
        self._calls: list[Callable[[], None]] = []
        self._stopping = False
        self._quanta: Quanta | None = None
        self._quantum_is_next = False
        self.tiers = DeviceTiers(
            resident, cache, metrics, packed_bytes, materialised_bytes, self.call, mixed, why_no_texts
        )
        self._executor = self._executor_for(limits or Limits(), mixed)
        self._integrity = IntegrityCheck(resident, metrics, verify_seconds)
        self._ended = float("-inf")
        """When a batch last ended."""
        names = ["ken-engine", *(f"ken-engine-{number}" for number in range(1, batches))]
        self._threads = [
            threading.Thread(target=self._loop, args=[number], name=name, daemon=True)
            for number, name in enumerate(names)
        ]

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
        with self._lock:
            return self._line.wanted

    def serve(self, quanta: Quanta) -> None:
        """Do this work, too, by turns with the batches of rows. Called before `start`."""
        self._quanta = quanta

    def wake(self) -> None:
        """Have a thread look for work: there is something in quanta."""
        with self._lock:
            self._crew.wake()

    def activate(self, task: Loaded, key: Hashable, turn: Turn) -> float:
        """Put a task into the weights; the seconds that it took. For work in quanta.

        Raises:
            ExchangeError, PoisonedError: the task could not be put in.
        """
        return self._executor.activate(task, key, turn)

    def start(self) -> None:
        """Start the threads; returns when a forward pass has warmed every kernel."""
        for thread in self._threads:
            thread.start()
        self.call(self._warm).result()

    def stop(self) -> None:
        """Let what is queued finish, revert to the base, end the threads."""
        with self._lock:
            self._stopping = True
            self._crew.wake_all()
        if self._quanta is not None:
            self._quanta.abort(UnavailableError("the server is stopping"))
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._try_revert()
        self.tiers.close()

    def check(self) -> None:
        """Raise unless the engine can answer: `PoisonedError`, or `UnavailableError` if a thread is gone."""
        if self._resident.poisoned:
            raise PoisonedError(self._resident.poisoned)
        if not all(thread.is_alive() for thread in self._threads):
            raise UnavailableError("a thread of the engine has ended")

    def call(self, work: Callable[[], R]) -> Future[R]:
        """Run something on a thread of the engine that has the weights alone, between two batches."""
        future: Future[R] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            if self._stopping:
                raise UnavailableError("the server is stopping")
            self._calls.append(run)
            self._crew.wake()
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
        with self._lock:
            if self._stopping:
                raise UnavailableError("the server is stopping")
            self._admission.check_line(self, len(asked))
            for row in asked:
                self._line.add(row)
            self._crew.wake()
        try:
            await ticket.done
        finally:
            with self._lock:
                if time.monotonic() < deadline:  # later ones are dropped, and counted, as expired
                    self._line.abandon(asked)
        return [r for r in ticket.results if r is not None], ticket.timing

    def backlog_seconds(self) -> float:
        """How long what is in line will take, at least 1 s: when to try again."""
        with self._lock:
            return max(1.0, round(self._executor.backlog_seconds(self._line), 1))

    # On the engine's threads

    def _loop(self, number: int) -> None:
        with torch.inference_mode():
            while self._step(number):
                pass

    def _step(self, number: int) -> bool:
        """One turn of a thread: for calls, for a batch, or for a step of the check. False when stopping and done."""
        with self._lock:
            has_work = self._crew.wait(number, lambda: self._has_work(number), self._seconds_until_due(number))
            late = self._line.drop(time.monotonic())
            calls, self._calls = self._calls, []
            rows: list[Row[_Asked]] = []
            turn = None
            quantum = not calls and has_work and self._is_for_quanta()
            if calls or quantum or (not has_work and self._crew.is_idle):
                turn = self._crew.begin()
                turn.own()
            elif self._line and has_work:
                rows, turn = self._next_batch()
            if quantum or rows:
                self._quantum_is_next = not quantum
            done = self._stopping and not (turn or late)
            now = time.monotonic()
            self._line.take(rows, now)
            self._wake_others(done)
        self._refuse(late)
        if rows and turn:
            self._run(rows, now, turn)
        elif quantum and turn:
            self._run_quantum(turn)
        elif turn:
            self._attend(calls, now, turn)
        return not done

    def _next_batch(self) -> tuple[list[Row[_Asked]], Turn]:
        """The rows to run next, which stay in line, and a turn for them."""
        rows = self._executor.choose(self._line, time.monotonic(), self._crew.free)
        # Rows that came after the last batch ended, with none behind them, may have all CPU threads.
        quiet = self._crew.is_idle and len(rows) == len(self._line) and all(r.arrived >= self._ended for r in rows)
        changes = self._executor.changes_weights(rows)
        turn = self._crew.begin()
        if changes or quiet:
            turn.own()
        if changes:  # the other batches have ended meanwhile, and more rows may have come
            rows = self._executor.choose(self._line, time.monotonic(), free=1)
        return rows, turn

    def _has_work(self, number: int) -> bool:
        """Whether a thread may begin with something, or is to end."""
        waits = bool(self._calls or self._line or self._quanta_wait)
        return (waits and self._crew.may_begin(number)) or (self._stopping and not waits)

    @property
    def _quanta_wait(self) -> bool:
        return self._quanta is not None and self._quanta.has_work

    def _is_for_quanta(self) -> bool:
        """Whether a quantum comes next: by turns, where rows are in line as well."""
        return self._quanta_wait and (self._quantum_is_next or not self._line)

    def _is_pressed(self) -> bool:
        return bool(self._calls or self._line or self._stopping)

    def _seconds_until_due(self, number: int) -> float | None:
        """Until the first thread is to go on with the check of the idle base; the others wait for work alone."""
        if number:
            return None
        seconds = self._integrity.seconds_until_due(time.monotonic())
        return seconds if self._crew.is_idle else max(seconds, _BUSY_SECONDS)

    def _wake_others(self, done: bool) -> None:
        if done:
            self._crew.wake_all()
        elif self._calls or self._line or self._quanta_wait:
            self._crew.wake()

    def _attend(self, calls: Sequence[Callable[[], None]], now: float, turn: Turn) -> None:
        """Run calls, or a step of the check of the idle base."""
        with turn:
            for call in calls:
                call()
            if not calls:
                self._integrity.step(now)

    def _run(self, rows: list[Row[_Asked]], taken: float, turn: Turn) -> None:
        """Run rows as one batch, and hand out what came of each of its groups."""
        by_key: dict[Hashable, list[Row[_Asked]]] = {}
        for row in rows:
            by_key.setdefault(row.key, []).append(row)
        groups = list(by_key.values())
        with turn:
            ran = self._executor.run(Batch([_group(group) for group in groups]), turn)
            self._ended = time.monotonic()
            self._integrity.disturb(self._ended)
        for group, outcome in zip(groups, ran.outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(group, outcome)
            else:
                _hand_out(group, outcome, taken, ran)

    def _run_quantum(self, turn: Turn) -> None:
        assert self._quanta is not None
        with turn:
            self._quanta.run(turn, self._is_pressed)
            self._ended = time.monotonic()
            self._integrity.disturb(self._ended)

    def _fail(self, rows: list[Row[_Asked]], error: Exception) -> None:
        """Answer a group's requests with its error."""
        digest = rows[0].payload.task.digest
        error = told(error, digest, f"a batch of {len(rows)} inputs", self._metrics.poisoned)
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
            with torch.inference_mode():
                self._resident.revert()
        except Exception:
            _log.exception("the base could not be restored at the end")


def _group(rows: Sequence[Row[_Asked]]) -> Group:
    """Rows of one key as a group."""
    first = rows[0].payload
    return Group(first.task, first.pipeline, [row.payload.encoded for row in rows])


def _hand_out(rows: Sequence[Row[_Asked]], results: Sequence[Raw], taken: float, ran: Ran) -> None:
    for row, result in zip(rows, results, strict=True):
        timing = Timing(queue=taken - row.arrived, swap=ran.switching, model=ran.computing, mixed=ran.mixed)
        row.payload.ticket.give(row.payload.index, result, timing)
