"""Whether a delta can be served here: tried with all that answering does, before anybody can ask for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import orjson

from ken_core import (
    CheckpointChangedError,
    Delta,
    DeltaFile,
    ExchangeError,
    KenError,
    PoisonedError,
    ResidentModel,
    deltafile,
)
from ken_core.errors import DeltaFormatError
from ken_core.foreign import reading, reason
from serving.engine.engine import Engine
from serving.errors import (
    ChangedBaseError,
    DeadlineError,
    InternalError,
    InvalidInputError,
    OverloadedError,
    UnavailableError,
)
from serving.pipelines import PIPELINES, Parameters, Pipeline, default_kind
from serving.pipelines.base import Prepared, Probe, TaskSpec, check, check_inputs
from serving.tiers.loaded import Loaded
from serving.workers.steps import finish
from serving.workers.time_limit import within

R = TypeVar("R")

_TEXTS = (
    "The quick brown fox didn't jump over 13 lazy dogs, did it?",
    "x",
    " \t\n.",
    "Füße, naïve Ærøskøbing; Москва, 東京へ行く, مرحبا بالعالم, नमस्ते",
    "\U0001f44d\U0001f3fd ok \U0001f469\u200d\U0001f4bb\ufe0f a\u0301\u0323 \u200b\ufeff\x00\x07",
    "long: " + "the more rain there was, the later it got - " * 200,
)
"""A plain text, a short one, a nearly empty one, one of many scripts, one whose characters have many code points, and
one that is longer than most models take."""
_LONGEST_ROW = 1024
"""Tokens. Longer rows are made but not run: the time of a forward pass grows with the square of their length."""
_SECONDS = 60.0
"""For each step of a kind: encoding all texts, running their rows, presenting the answers."""
_MOST_REMEMBERED = 4096
_TRANSIENT = (DeadlineError, OverloadedError, UnavailableError)


@dataclass(frozen=True)
class _Question:
    """A probe, encoded and ready to run."""

    parameters: Parameters
    prepared: Prepared


Questions = Mapping[Pipeline, Sequence[_Question]]


class Fitness:
    """Tries deltas of unknown origin on a running engine, one at a time, between the requests it answers."""

    def __init__(self, resident: ResidentModel, engine: Engine) -> None:
        self._resident = resident
        self._engine = engine
        self._turn = threading.Lock()
        self._found_fit: OrderedDict[str, None] = OrderedDict()

    def check(self, path: Path) -> DeltaFile:
        """Open a delta, decode all of it, encode texts, run them, and write the answers as JSON.

        Blocks, so neither a thread of the engine nor an event loop may call it.

        Raises:
            InvalidInputError: the file is no valid delta, the delta is of another base or of a kind that is not served
                here, or its model does not answer.
            ChangedBaseError: the base's file has changed, so no delta can be decoded against it.
            OverloadedError, DeadlineError, UnavailableError: the engine had no time for the delta, about which nothing
                is known yet.
        """
        with self._turn:
            try:
                file = self._checked(path)
            except _TRANSIENT:
                raise
            except (ExchangeError, PoisonedError) as error:
                raise UnavailableError(
                    f"the device failed while the delta was tried; publish the delta again: {error}"
                ) from error
            except CheckpointChangedError as error:
                raise ChangedBaseError(f"no delta can be checked here at present: {error}") from error
            except KenError as error:
                # the temporary file's name means nothing to the uploader
                found = str(error).replace(path.name, "it")
                raise InvalidInputError(f"the delta cannot be served here: {found}") from error
            self._found_fit[file.digest] = None
            while len(self._found_fit) > _MOST_REMEMBERED:
                self._found_fit.popitem(last=False)
            return file

    def found(self, digest: str) -> bool:
        """Whether a delta was found fit, as far as this replica remembers."""
        return digest in self._found_fit

    def _checked(self, path: Path) -> DeltaFile:
        file = deltafile.open_file(path)
        delta = deltafile.read(file, self._resident.checkpoint, self._resident.fingerprint.digest)
        spec, questions = self._encoded(delta)
        with self._engine.tiers.on_trial(file.digest, delta, spec) as loaded:
            for pipeline, asked in questions.items():
                self._ask(loaded, pipeline, asked)
        return file

    def _encoded(self, delta: Delta) -> tuple[TaskSpec, Questions]:
        def encode() -> tuple[TaskSpec, Questions]:
            spec = self._engine.tiers.spec(delta)
            return spec, _questions(delta, spec)

        return _in_time("the delta's tokenizer", encode)

    def _ask(self, loaded: Loaded, pipeline: Pipeline, asked: Sequence[_Question]) -> None:
        """Have all questions of a kind answered, as one request of many inputs."""
        rows = [row for question in asked for row in question.prepared.rows]
        try:
            raws, _ = asyncio.run(_until(self._engine.answer(loaded, pipeline, rows, time.monotonic() + _SECONDS)))
        except InternalError as error:
            raise InternalError(f"its model fails on text: {reason(error.__cause__ or error)}") from error

        def answer() -> bytes:
            left = iter(raws)
            return orjson.dumps(
                [
                    pipeline.present(q.prepared, list(islice(left, len(q.prepared.rows))), loaded.spec, q.parameters)
                    for q in asked
                ]
            )

        _in_time("the model's answer", answer)


def _in_time(what: str, work: Callable[[], R]) -> R:
    """Run code that the delta's own files control, within a time limit. All its errors become `KenError`s."""
    try:
        return within(_SECONDS, partial(_guarded, what, work))
    except TimeoutError:
        raise DeadlineError(
            f"{what} took longer than {_SECONDS:g} s to try: it is too slow to be served, or the server is too busy"
        ) from None


def _guarded(what: str, work: Callable[[], R]) -> R:
    with reading(what):
        return work()


async def _until(run: Awaitable[R]) -> R:
    try:
        async with asyncio.timeout(_SECONDS):
            return await run
    except TimeoutError:
        raise DeadlineError(f"the engine had no time to try the delta within {_SECONDS:g} s; publish again") from None


def _questions(delta: Delta, spec: TaskSpec) -> Questions:
    """Questions made of the probes of every kind that reads the delta's head."""
    usual = default_kind(delta.kind, delta.embedding is not None)
    found: dict[Pipeline, list[_Question]] = {}
    for pipeline in (p for p in PIPELINES.values() if p.head == delta.kind):
        asked, refusals = [], []
        for probe in pipeline.probes(_TEXTS):
            try:
                asked.append(_question(pipeline, probe, spec))
            except InvalidInputError as error:  # a text without tokens, or a head that this kind cannot read
                refusals.append(error)
        if pipeline.kind == usual and not asked:
            raise DeltaFormatError(f"its tokenizer can encode none of {len(refusals)} texts: {refusals[0]}")
        if short := [q for q in asked if max(map(len, q.prepared.rows)) <= _LONGEST_ROW]:
            found[pipeline] = short
    return found


def _question(pipeline: Pipeline, probe: Probe, spec: TaskSpec) -> _Question:
    parameters = check(pipeline.parameters, probe.parameters)
    (prepared,) = finish(pipeline.prepare(check_inputs(pipeline, [probe.input]), spec, parameters))
    return _Question(parameters, prepared)
