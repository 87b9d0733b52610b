"""Runs continuations: steps of many tasks at once, or a quantum of steps of one task, then one of the next.

A step is planned, run, and its tokens are chosen. If a step of several continuations fails, each of them is run again
by itself, so that none fails with another. How a step runs, `serving.generation.ways` knows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import nn

from ken_core import ResidentModel
from ken_core.decoding.choice import AnyDecoder
from ken_core.decoding.few_rows import few_rows
from ken_core.kernels import few_tokens
from ken_core.mixing.steps import MixedSteps
from serving.engine.crew import Turn
from serving.engine.engine import Engine
from serving.errors import DeadlineError, OverloadedError, UnavailableError
from serving.generation.asked import Asked, Asking
from serving.generation.ready import Ready, chunks_of, made_ready
from serving.generation.schedule import Part, Room, Schedule
from serving.generation.ways import StepCosts, StepRunner
from serving.pipelines.model_failure import told
from serving.telemetry.metrics import Metrics
from serving.tiers.loaded import Loaded

_log = logging.getLogger(__name__)
_STEP_SECONDS = 0.4
"""A step that makes others wait gets so many tokens of prompts as to end within this time."""
_FEWEST = 16
"""Tokens of prompts that a step gets in any case."""
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
        steps: runs steps that mix tasks; None: every step is of one task.
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
        steps: MixedSteps | None = None,
    ) -> None:
        self._engine = engine
        self._steps = steps
        self._runner = StepRunner(decoder, steps)
        self._decoder = decoder
        self._metrics = metrics
        self._tokens = tokens
        self._queue = queue
        self._costs = StepCosts(quantum)
        self._lock = threading.Lock()
        self._schedule: Schedule[Asked] = Schedule(
            Room(room // decoder.token_nbytes, decoder.block), rows, copies=decoder.packs
        )
        self._modules = list(resident.backbone.modules())
        if any(few_tokens.takes(p) for p in resident.backbone.parameters() if p.dim() == 2):
            few_tokens.is_usable()  # compiled now, and not when the first text waits for it
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
        return max(1.0, round(min(_MOST_WAITED, left * self._costs.step.usual), 1))

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
        try:
            self._run(turn, pressed)
        except Exception as error:  # of this code itself: the engine's thread must go on
            _log.exception("a quantum failed")
            with self._lock:
                gone = list(self._schedule.all())
            for one in gone:
                self._end(one, error)

    def _run(self, turn: Turn, pressed: Callable[[], bool]) -> None:
        self._drop()
        with self._lock:
            running = self._schedule.running_by_key()
            task = next((some[0].payload.task for some in running.values()), None)
            if task is None:
                return
            mixes = self._steps is not None and task.mixes and self._costs.prefers_mixed(self._mixing())
            if not mixes:
                self._schedule.ran([task.digest])
        if mixes:
            self._run_mixed(turn, pressed)
        else:
            self._run_alone(task.digest, task, turn, pressed)

    def _mixing(self) -> dict[Loaded, int]:
        """The tasks that mix, with the number of their texts that could run; the one that ran longest ago first."""
        running = self._schedule.running_by_key().values()
        return {task: len(some) for some in running if (task := some[0].payload.task).mixes}

    # A quantum of one task, by exchange

    def _run_alone(self, key: Hashable, task: Loaded, turn: Turn, pressed: Callable[[], bool]) -> None:
        try:
            self._activate(task, turn)
        except Exception as error:
            self._fail_all(key, error)
            return
        until = time.monotonic() + self._costs.turn
        with few_rows([*self._modules, *_head_modules(task.model.whole)]):
            while self._step_alone(key, task, until, pressed):
                self._drop()

    def _activate(self, task: Loaded, turn: Turn) -> None:
        switched = self._engine.activate(task, task.digest, turn)
        if switched:
            self._costs.switch = switched

    def _step_alone(self, key: Hashable, task: Loaded, until: float, pressed: Callable[[], bool]) -> bool:
        """One step of a task; False when the quantum is over."""
        with self._lock:
            waited_for = self._schedule.has_others([key]) or pressed()
            parts = self._planned([key], waited_for, [])
        if not parts:
            return False
        started = time.monotonic()
        self._advance(
            parts,
            lambda ready: [self._runner.alone(task, *chunks_of(ready))],
            again=None,
        )
        ended = time.monotonic()
        self._costs.learn(sum(part.tokens for part in parts), ended - started)
        self._metrics.step_tasks.observe(1)
        return ended < until or not waited_for

    # A quantum of mixed steps

    def _run_mixed(self, turn: Turn, pressed: Callable[[], bool]) -> None:
        until = time.monotonic() + self._costs.turn
        try:
            while self._step_mixed(turn, until, pressed):
                self._drop()
        finally:
            self._runner.rest()

    def _step_mixed(self, turn: Turn, until: float, pressed: Callable[[], bool]) -> bool:
        """One step of all tasks that mix; False when the quantum is over."""
        with self._lock:
            mixing = self._mixing()
            if not mixing or not self._costs.prefers_mixed(mixing):
                return False
            tasks: dict[Hashable, Loaded] = {task.digest: task for task in mixing}
            waited_for = self._schedule.has_others(tasks) or pressed()
            parts = self._planned(self._schedule.together(list(tasks)), waited_for, list(mixing))
            self._schedule.ran(dict.fromkeys(part.of.key for part in parts))
        if not parts:
            return False
        started = time.monotonic()
        self._advance(parts, partial(self._run_on_base, turn), again=partial(self._again_by_exchange, turn))
        ended = time.monotonic()
        tokens: Counter[Loaded] = Counter()
        for part in parts:
            tokens[tasks[part.of.key]] += part.tokens
        extra = self._costs.learn_mixed(tokens, ended - started)
        self._metrics.correction_seconds.inc(min(extra, ended - started))
        self._metrics.step_tasks.observe(len(tokens))
        return ended < until or not waited_for

    def _run_on_base(self, turn: Turn, parts: Sequence[Ready]) -> list[torch.Tensor]:
        self._engine.revert(turn)
        groups = [list(group) for _, group in groupby(parts, key=lambda part: part.of.key)]
        return self._runner.mixed([(group[0].of.payload.task, *chunks_of(group)) for group in groups])

    def _again_by_exchange(self, turn: Turn, part: Ready) -> Sequence[torch.Tensor]:
        """A text whose mixed step failed runs by exchange, if its task can."""
        task = part.of.payload.task
        if not task.attached.expanded:
            return self._run_on_base(turn, [part])
        self._activate(task, turn)
        return [self._runner.alone(task, *chunks_of([part]))]

    # A step

    def _planned(self, keys: Sequence[Hashable], waited_for: bool, mixed: Sequence[Loaded]) -> list[Part[Asked]]:
        """The parts of a step. The lock is held."""
        before = self._schedule.preempted
        parts = self._schedule.plan(keys, self._prompt_tokens(keys, waited_for, mixed))
        self._metrics.preempted.inc(self._schedule.preempted - before)
        return parts

    def _prompt_tokens(self, keys: Sequence[Hashable], waited_for: bool, mixed: Sequence[Loaded]) -> int:
        """Tokens of prompts for the next step: as many as fit, or as do not keep anybody waiting for long."""
        running = self._schedule.running_by_key()
        decoding = sum(one.left == 1 for key in keys for one in running.get(key, ()))
        if not (decoding or waited_for):
            return self._tokens
        token = self._costs.token(mixed)
        spare = _STEP_SECONDS - self._costs.step.fixed - token * decoding
        return max(_FEWEST, min(int(spare / max(token, 1e-6)), self._tokens))

    def _ready(self, part: Part[Asked]) -> Ready:
        if part.copied is not None:
            self._metrics.copied_tokens.inc(part.copied.tokens)
        return made_ready(part, self._decoder)

    def _advance(
        self,
        parts: Sequence[Part[Asked]],
        run: Callable[[Sequence[Ready]], Sequence[torch.Tensor]],
        again: Callable[[Ready], Sequence[torch.Tensor]] | None,
    ) -> None:
        """Run a step; if that fails, run each continuation by itself, from its first token on.

        Args:
            run: gives logits, in the order of the parts that want some.
            again: the same for one part, in another way; None: there is no other.
        """
        ends = [part.end for part in parts]
        try:
            ready = [self._ready(part) for part in parts]
            logits = [row for made in run(ready) for row in made]
        except Exception as error:
            if len(parts) == 1 and again is None:
                self._end(parts[0].of, error)
                return
            _log.warning("a step of %d texts failed; they run one by one: %s", len(parts), error)
            for part, end in zip(parts, ends, strict=True):
                self._run_again(part.of, end, again or (lambda ready: run([ready])))
            return
        self._completed(ready, logits)

    def _run_again(self, one: Asking, end: int, again: Callable[[Ready], Sequence[torch.Tensor]]) -> None:
        """Compute a continuation's first `end` tokens."""
        if one.abandoned:
            return
        one.forget()  # what was put there by the step that failed must not be used
        try:
            ready = self._ready(Part(one, end))
            logits = [row for made in again(ready) for row in made]
        except Exception as error:
            self._end(one, error)
            return
        self._completed([ready], logits)

    def _completed(self, parts: Sequence[Ready], logits: Sequence[torch.Tensor]) -> None:
        made = iter(logits)
        for part in parts:
            wanted = part.wanted
            part.of.computed += part.tokens
            if wanted:
                self._choose(part.of, next(made))

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


def _head_modules(whole: nn.Module) -> list[nn.Module]:
    """The linear layers of a head that turn states into logits."""
    output = getattr(whole, "get_output_embeddings", lambda: None)()
    return [] if output is None else [output]
