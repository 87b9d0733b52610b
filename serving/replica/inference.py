"""Inference: from a task's inputs to its outputs. Acquire the task, check, encode, run, present."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from ken_core.errors import CheckpointChangedError
from serving.admission import Admission
from serving.engine.engine import Engine
from serving.engine.tickets import Timing
from serving.errors import ChangedBaseError, DeadlineError, InvalidInputError
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
from serving.pipelines.text_generation import TEXT_GENERATION, TextGenerationParameters
from serving.replica.continuing import Continuing, query_of
from serving.replica.shared_rows import SharedRows
from serving.routing.merges import Merge
from serving.telemetry.generation_metrics import GenerationFacts
from serving.tiers.loaded import Loaded
from serving.workers.pool import WorkerPool
from serving.workers.steps import Steps, finish

_PRESENTED_AT_ONCE = 16_384
"""Floats whose presentation may hold up the event loop: a millisecond or two of ``tolist``."""
_NUMBERS_A_CHARACTER = 16
"""Numbers that are presented in the time in which one character is encoded."""


@dataclass(frozen=True)
class Prediction:
    """What a task answers.

    Attributes:
        digest: of the delta that answered.
        kind: of the question that was answered.
        outputs: one for each input, in order.
        truncated: positions of the inputs that were cut to the model's length.
        tokens: of all inputs, special tokens included, padding not.
        timing: how long each stage took.
        texts: what is counted of generated texts; None: the outputs are none.
    """

    digest: str
    kind: str
    outputs: list[Any]
    truncated: list[int]
    tokens: int
    timing: Timing
    texts: GenerationFacts | None = None


class Inference:
    """Answers the inputs of tasks."""

    def __init__(self, engine: Engine, workers: WorkerPool, admission: Admission, continuing: Continuing) -> None:
        self._engine = engine
        self._workers = workers
        self._admission = admission
        self._continuing = continuing

    async def __call__(
        self,
        digest: str,
        inputs: Sequence[object],
        parameters: Mapping[str, Any],
        timeout: float,
        kind: str | None = None,
        client: Hashable = None,
        shared: SharedRows | None = None,
        merge: Merge | None = None,
    ) -> Prediction:
        """Answer a task's inputs.

        Args:
            digest: of the task's delta, or of the merge.
            inputs: plain JSON or `TokenIds`, unchecked.
            parameters: plain JSON, unchecked.
            timeout: seconds.
            kind: of the question; None: the kind that the task answers by itself.
            client: who asks; clients take turns on the worker threads.
            shared: rows of the other tasks that the same request asks the same. None: it asks one task.
            merge: the merge of tasks that answers. None: a version of a task does.

        Raises:
            InvalidInputError: the task cannot answer this kind, or the kind does not take these inputs or parameters.
            TooLargeError: the request has more text than one request may have.
            OverloadedError: too many inputs wait already.
            DeadlineError: there was no answer in time.
            StoreError: no tier holds the delta, and the store does not give it.
            ChangedBaseError: the delta is not on the device, and the base's file is not what it was.
            UnfitDeltaError: the delta can never be served here.
            RefusedDeltaError: the delta must be signed by a trusted key, and is not.
            UnmergeableError, ForbiddenError: the merge cannot be made; this replica makes none.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + timeout):
                async with self.on_device(digest, len(inputs), merge, client) as loaded:
                    acquired = time.monotonic()
                    asked = _checked(loaded, kind, inputs, parameters)
                    if asked.pipeline.kind == TEXT_GENERATION:
                        return await self._generate(loaded, asked, started, started + timeout, client)
                    prepared = await self._encode(asked, client, shared)
                    rows = [row for one in prepared for row in one.rows]
                    tokens = sum(map(len, rows))
                    self._admission.check_tokens(tokens, shared.tasks if shared else 1)
                    encoded = time.monotonic()
                    raws, timing = await self._engine.answer(loaded, asked.pipeline, rows, started + timeout)
                outputs = await self._present(asked, prepared, raws, client)
        except TimeoutError:
            raise DeadlineError(f"no answer within {timeout:g} s") from None
        timing.load, timing.tokenize = acquired - started, encoded - acquired
        truncated = [i for i, one in enumerate(prepared) if one.truncated]
        return Prediction(digest, asked.pipeline.kind, outputs, truncated, tokens, timing)

    @asynccontextmanager
    async def on_device(
        self, digest: str, inputs: int, merge: Merge | None = None, client: Hashable = None
    ) -> AsyncIterator[Loaded]:
        """Within it, the task is on the device and stays there.

        Args:
            inputs: how many inputs wait for it.
            merge, client: as in a prediction.

        Raises:
            OverloadedError, StoreError, ChangedBaseError, UnfitDeltaError, RefusedDeltaError, UnmergeableError,
                ForbiddenError: as a prediction does.
        """
        tiers = self._engine.tiers
        try:
            with self._admission.preparation(self._engine, inputs):
                loaded = await (tiers.acquire_merge(merge, client) if merge else tiers.acquire(digest))
        except CheckpointChangedError as error:
            raise ChangedBaseError(f"delta {digest} cannot be loaded: {error}") from error
        try:
            yield loaded
        finally:
            tiers.release(loaded)

    async def _generate(
        self, loaded: Loaded, asked: _Checked, started: float, deadline: float, client: Hashable
    ) -> Prediction:
        """Continue the inputs, and answer when all continuations are complete."""
        wanted: TextGenerationParameters = asked.parameters  # type: ignore[assignment]  # the pipeline's own
        query = query_of(asked.inputs, wanted, loaded.spec.generation)
        texts = [text if wanted.return_full_text else "" for text in asked.inputs]
        with _in_words_of_the_kind():
            async with self._continuing(loaded, query, started, deadline, client) as generation:
                async for piece in generation:
                    texts[piece.choice] += piece.text
        facts = generation.facts
        timing = Timing(facts.load, facts.tokenize, model=time.monotonic() - started - facts.load - facts.tokenize)
        outputs = [{"generated_text": text} for text in texts]
        tokens = facts.prompt_tokens + facts.generated
        return Prediction(loaded.digest, TEXT_GENERATION, outputs, [], tokens, timing, facts)

    async def _encode(self, asked: _Checked, client: Hashable, shared: SharedRows | None) -> list[Prepared]:
        prepare = partial(self._prepare, asked, client)
        with self._admission.preparation(self._engine, len(asked.inputs)):
            if shared is None or not asked.pipeline.encodes_by_tokenizer_alone:
                return await prepare()
            return await shared.rows((asked.pipeline.kind, asked.spec.encoder), prepare)

    async def _prepare(self, asked: _Checked, client: Hashable) -> list[Prepared]:
        steps = asked.pipeline.prepare(asked.inputs, asked.spec, asked.parameters)
        with refusing_what_its_tokenizer_cannot_read():
            return await self._workers.run(client, steps)

    async def _present(
        self, asked: _Checked, prepared: Sequence[Prepared], raws: Sequence[Raw], client: Hashable
    ) -> list[Any]:
        """Outputs, made on the event loop where that is quick, else on the worker threads."""
        steps = _presentation(asked, prepared, raws)
        with refusing_what_its_tokenizer_cannot_read():
            if sum(raw.size for raw in raws) <= _PRESENTED_AT_ONCE:
                return finish(steps)
            return await self._workers.run(client, steps)


@dataclass(frozen=True)
class _Checked:
    """Inputs and parameters, as the kind that is asked takes them."""

    pipeline: Pipeline
    spec: TaskSpec
    inputs: list[Any]
    parameters: Parameters


_WORDS = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "prompts": "inputs"}


@contextmanager
def _in_words_of_the_kind() -> Iterator[None]:
    """Within it, refusals name inputs and parameters as this kind does, and not as a query does."""
    try:
        yield
    except InvalidInputError as error:
        name, dot, inner = (error.at or "").partition(".")
        if name not in _WORDS:
            raise
        raise type(error)(str(error).removeprefix(f"{error.at}: "), f"{_WORDS[name]}{dot}{inner}") from error


def _checked(loaded: Loaded, kind: str | None, inputs: Sequence[object], parameters: Mapping[str, Any]) -> _Checked:
    pipeline = pipeline_for(kind or loaded.kind, loaded.head)
    checked = check(pipeline.parameters, parameters)
    check_side(checked, loaded.spec)
    return _Checked(pipeline, loaded.spec, check_inputs(pipeline, inputs), checked)


def _presentation(asked: _Checked, prepared: Sequence[Prepared], raws: Sequence[Raw]) -> Steps[list[Any]]:
    left, outputs = iter(raws), []
    for one in prepared:
        ours = list(islice(left, len(one.rows)))
        yield sum(raw.size for raw in ours) // _NUMBERS_A_CHARACTER
        outputs.append(asked.pipeline.present(one, ours, asked.spec, asked.parameters))
    return outputs
