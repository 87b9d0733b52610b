"""Runs continuations: a quantum of steps of one task, then one of the next.

A step is planned, run, and its tokens are chosen. If a step of several continuations fails, each of them is run again
by itself, so that none fails with another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn

from ken_core import ResidentModel
from ken_core.decoding.choice import AnyDecoder
from ken_core.decoding.decoder import Chunk
from ken_core.decoding.few_rows import few_rows
from serving.engine.costs import BatchCost
from serving.engine.crew import Turn
from serving.engine.engine import Engine
from serving.errors import DeadlineError, OverloadedError, UnavailableError
from serving.generation.asked import Asked, Asking
from serving.generation.schedule import Part, Room, Schedule
from serving.pipelines.model_failure import told
from serving.telemetry.metrics import Metrics
from serving.tiers.loaded import Loaded

_STEP_SECONDS = 0.4
"""A step that makes others wait gets so many tokens of prompts as to end within this time."""
_FEWEST = 16
"""Tokens of prompts that a step gets in any case."""
_SWITCHES = 9
"""A quantum lasts as long as so many switches, so that a tenth of the time goes into switching."""
_MOST_WAITED = 60.0


class Generator:
    """Continues sequences, by turns with the engine's other work.

    Its methods may be called on any thread; `run` is the engine's.

    Args:
        decoder: of the resident backbone.
        room: bytes for keys and values.
        rows: continuations in one step at most.
        tokens: in one step at most.
        queue: continuations that may wait for room.
        quantum: seconds that a task generates at most while others wait.
    """

    def __init__(
        self,
        engine: Engine,
        resident: ResidentModel,
        decoder: AnyDecoder,
        metrics: Metrics,
        *,
        room: int,
        rows: int = 32,
        tokens: int = 4096,
        queue: int = 2048,
        quantum: float = 0.5,
    ) -> None:
        self._engine = engine
        self._resident = resident
        self._decoder = decoder
        self._metrics = metrics
        self._tokens = tokens
        self._queue = queue
        self._quantum = quantum
        self._lock = threading.Lock()
        self._schedule: Schedule[Asked] = Schedule(Room(room // decoder.token_nbytes, decoder.block), rows)
        self._cost = BatchCost()
        self._switch_seconds = 0.0
        self._modules = list(resident.backbone.modules())
        self._closed: Exception | None = None
        engine.serve(self)

    # What the replica sees

    @property
    def running(self) -> int:
        """Continuations that have room for their keys and values."""
        return self._schedule.running

    @property
    def waiting(self) -> int:
        """Continuations that wait for room."""
        return self._schedule.waiting

    @property
    def used_bytes(self) -> int:
        """Bytes that keys and values take, as far as they are reserved."""
        with self._lock:
            return self._schedule.used * self._decoder.token_nbytes

    @property
    def budget_bytes(self) -> int:
        """Bytes that keys and values may take."""
        return self._schedule.room.tokens * self._decoder.token_nbytes

    @property
    def most_tokens(self) -> int:
        """Tokens of one continuation, its prompt included, for which there is room."""
        return self._schedule.room.longest

    def add(self, some: Sequence[Asking]) -> None:
        """Continue sequences, each of at most `most_tokens`.

        Raises:
            OverloadedError: too many wait already.
            UnavailableError: the engine is stopping.
        """
        with self._lock:
            if self._closed is not None:
                raise UnavailableError(str(self._closed))
            waiting = self._schedule.waiting
            if waiting and waiting + len(some) > self._queue:
                seconds = self._backlog_seconds()
                raise OverloadedError(f"{waiting} texts wait to be continued; try again in {seconds:g} s", seconds)
            self._schedule.add(some)
        self._engine.wake()

    def abandon(self, some: Sequence[Asking]) -> None:
        """Nobody waits for these any more: their keys and values are freed before the next step."""
        with self._lock:
            for one in some:
                one.abandoned = True
        self._engine.wake()

    def _backlog_seconds(self) -> float:
        """About how long it takes until the next one has ended."""
        left = min((one.most - len(one.output) for one in self._schedule.all()), default=1)
        return max(1.0, round(min(_MOST_WAITED, left * self._cost.usual), 1))

    # For the engine

    @property
    def has_work(self) -> bool:
        return len(self._schedule) > 0

    def abort(self, error: Exception) -> None:
        with self._lock:
            self._closed = error
            gone = list(self._schedule.all())
            for one in gone:
                one.abandoned = True
        for one in gone:
            one.payload.sink.failed(error)

    def run(self, turn: Turn, pressed: Callable[[], bool]) -> None:
        self._drop()
        with self._lock:
            key = self._schedule.turn()
            task = self._task_of(key)
        if task is None:
            return
        try:
            switched = self._engine.activate(task, key, turn)
        except Exception as error:
            self._fail_all(key, error)
            return
        if switched:
            self._switch_seconds = switched
        until = time.monotonic() + min(self._quantum, max(_SWITCHES * self._switch_seconds, self._cost.usual))
        with few_rows([*self._modules, *_head_modules(task.model.whole)]):
            while self._step(key, task, until, pressed):
                self._drop()

    # A quantum

    def _step(self, key: Hashable, task: Loaded, until: float, pressed: Callable[[], bool]) -> bool:
        """One step of a task; False when the quantum is over."""
        with self._lock:
            others = self._schedule.has_others(key)
            before = self._schedule.preempted
            parts = self._schedule.plan(key, self._prompt_tokens(key, others or pressed()))
            self._metrics.preempted.inc(self._schedule.preempted - before)
            chunks = [self._chunk(part) for part in parts]
        if not parts:
            return False
        started = time.monotonic()
        self._advance(task, parts, chunks)
        ended = time.monotonic()
        self._cost.learn(sum(part.tokens for part in parts), ended - started)
        return ended < until or not (others or pressed())

    def _prompt_tokens(self, key: Hashable, waited_for: bool) -> int:
        """Tokens of prompts for the next step: as many as fit, or as do not keep anybody waiting for long."""
        decoding = sum(one.left == 1 for one in self._schedule.all() if one.key == key)
        if not (decoding or waited_for):
            return self._tokens
        spare = (_STEP_SECONDS - self._cost.of(decoding)) / max(self._cost.token, 1e-6)
        return max(_FEWEST, min(int(spare), self._tokens))

    def _chunk(self, part: Part[Asked]) -> Chunk:  # type: ignore[type-arg]
        one = part.of
        if one.past is None:
            one.past = self._decoder.start()
        return Chunk(one.next_ids(part.tokens), one.past)

    def _advance(self, task: Loaded, parts: Sequence[Part[Asked]], chunks: Sequence[Chunk]) -> None:  # type: ignore[type-arg]
        """Run a step; if that fails, run each continuation by itself, from its first token on."""
        try:
            logits = self._logits(task, parts, chunks)
        except Exception as error:
            if len(parts) == 1:
                self._end(parts[0].of, error)
                return
            for part in parts:
                self._again(task, part)
            return
        completed = iter(logits)
        for part in parts:
            part.of.computed += part.tokens
            if part.of.left == 0:
                self._choose(part.of, next(completed))

    def _again(self, task: Loaded, part: Part[Asked]) -> None:
        one = part.of
        if one.abandoned:
            return
        whole = Part(one, one.computed + part.tokens)
        one.forget()  # what was put there by the step that failed must not be used
        self._advance(task, [whole], [self._chunk(whole)])

    def _logits(
        self,
        task: Loaded,
        parts: Sequence[Part[Asked]],
        chunks: Sequence[Chunk],  # type: ignore[type-arg]
    ) -> torch.Tensor:
        """Logits after the last known token of those whose step computes it: float32 on the CPU, (some, vocabulary)."""
        output = self._decoder.step(chunks)
        rows = [i for i, part in enumerate(parts) if part.of.left == part.tokens]
        if not rows:
            return torch.empty(0)
        ids = torch.tensor([[chunks[i].ids[-1] for i in rows]], device=output[0].device)
        states = type(output)(last_hidden_state=output[0][:, rows])
        answered = task.model(states, {"input_ids": ids})
        logits: torch.Tensor = answered.logits[0]
        return logits.float().cpu()

    def _choose(self, one: Asking, logits: torch.Tensor) -> None:
        asked = one.payload
        try:
            chosen = asked.sampler(logits, one.output)
        except Exception as error:
            self._end(one, error)
            return
        one.output.append(chosen.id)
        finish = asked.finish(one)
        if finish is not None:
            self._leave(one)
        asked.sink.chosen(chosen, finish)

    # Ends

    def _drop(self) -> None:
        with self._lock:
            gone = self._schedule.drop(time.monotonic())
        for one in gone:
            if not one.abandoned:
                one.payload.sink.failed(DeadlineError("the deadline passed before the text was complete"))

    def _leave(self, one: Asking) -> None:
        with self._lock:
            self._schedule.remove(one)
            one.forget()

    def _end(self, one: Asking, error: Exception) -> None:
        self._leave(one)
        digest = one.payload.task.digest
        one.payload.sink.failed(told(error, digest, f"a step of delta {digest}", self._metrics.poisoned))

    def _fail_all(self, key: Hashable, error: Exception) -> None:
        with self._lock:
            gone = [one for one in self._schedule.all() if one.key == key]
        for one in gone:
            self._end(one, error)

    def _task_of(self, key: Hashable | None) -> Loaded | None:
        return next((one.payload.task for one in self._schedule.all() if one.key == key), None)


def _head_modules(whole: nn.Module) -> list[nn.Module]:
    """The linear layers of a head that turn states into logits."""
    output = getattr(whole, "get_output_embeddings", lambda: None)()
    return [] if output is None else [output]
