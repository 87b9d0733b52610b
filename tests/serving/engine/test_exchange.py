"""Batches run by exchange: every group gets its own answers or its own error, whatever the others get."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from holding import Blocked, until
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ken_core import DeltaFile, ExchangeError, ResidentModel, open_base
from ken_core.errors import WholeModelNeededError
from serving.engine.batch import Batch, Group
from serving.engine.crew import Turn
from serving.engine.engine import Engine
from serving.engine.exchange import Exchange
from serving.engine.executor import Executor, Ran
from serving.engine.line import Line, Row
from serving.errors import InternalError
from serving.pipelines import PIPELINES
from serving.pipelines.base import Pipeline
from serving.pipelines.text_classification import TextClassification
from serving.store import Store
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache
from serving.tiers.device import Loaded
from serving.tiers.files import DeltaFiles
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny

FOREVER = 1e12
CLASSIFY = PIPELINES["text-classification"]
T = TypeVar("T")


class Broken(TextClassification):
    """A kind whose head raises."""

    def run_head(self, *_: Any) -> Any:
        raise ZeroDivisionError("no head")


class Forgetful(TextClassification):
    """A kind that loses a row."""

    def run_head(self, *given: Any) -> Any:
        return super().run_head(*given)[1:]


class Demanding(TextClassification):
    """A kind whose head needs its whole model."""

    outputs: list[object]

    def run_head(self, model: Any, output: Any, inputs: Any) -> Any:
        self.outputs.append(output)
        if output is not None:
            raise WholeModelNeededError("a head asks its backbone for the moon")
        return super().run_head(model, output, inputs)


@pytest.fixture(scope="module")
def resident(tiny: Tiny) -> ResidentModel:
    return ResidentModel(open_base(str(tiny.base_folder)))


@pytest.fixture
def engine(
    resident: ResidentModel, embedded_url: str, namespace: str, deltas: Deltas, tmp_path: Path
) -> Iterator[Engine]:
    store = Store(embedded_url, namespace)
    for file in (deltas.emotion, deltas.topic, deltas.spam):
        store.deltas.put(file)
    files = DeltaFiles(tmp_path / "deltas", 1 << 30, store)
    cache = DeltaCache(files, 1 << 30, resident.checkpoint, resident.fingerprint.digest)
    made = Engine(resident, cache, Metrics("exchange"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def group_of(engine: Engine) -> Callable[..., Group]:
    """``group_of(file, *texts, pipeline=...)``: texts that a kind asks of a task on the device."""

    def make(file: DeltaFile, *texts: str, pipeline: Pipeline = CLASSIFY) -> Group:
        task = asyncio.run(engine.tiers.acquire(file.digest))
        return Group(task, pipeline, task.spec.encoder(texts or TEXTS))

    return make


@pytest.fixture
def run(engine: Engine) -> Callable[..., Ran]:
    """``run(*groups)``: as one batch, on a thread of its own."""

    def run(*groups: Group) -> Ran:
        crew = engine._crew
        with crew.lock:
            turn = crew.begin()
        with turn, torch.inference_mode():
            return engine._executor.run(Batch(groups), turn)

    return run


@pytest.fixture(scope="session")
def logits(tiny: Tiny) -> Callable[..., np.ndarray]:
    """What a dedicated model says."""

    def ask(file: DeltaFile, *texts: str) -> np.ndarray:
        folder = tiny.applied(file)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        inputs = AutoTokenizer.from_pretrained(folder)(list(texts or TEXTS), padding=True, return_tensors="pt")
        with torch.inference_mode():
            return model(**inputs).logits.numpy()

    return ask


def are(outcome: Any, expected: np.ndarray) -> bool:
    return not isinstance(outcome, Exception) and np.allclose(np.stack(outcome), expected, atol=1e-5)


# Groups


def test_a_batch_knows_its_rows_and_its_tokens_with_padding(group_of: Callable[..., Group], deltas: Deltas) -> None:
    short, long = group_of(deltas.spam, "rain"), group_of(deltas.topic, "what is it", "rain")
    assert (short.padded, long.padded) == (3, 10)
    batch = Batch([short, long])
    assert [len(row) for row in batch.rows] == [3, 5, 3]
    assert batch.padded == 15
    assert short.key != long.key
    assert short.key == group_of(deltas.spam, "sun").key
    assert {name: tuple(t.shape) for name, t in long.inputs(torch.device("cpu")).items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (2, 5)
    )


def test_every_group_of_a_batch_gets_its_own_answers(
    run: Callable[..., Ran], group_of: Callable[..., Group], deltas: Deltas, logits: Callable[..., np.ndarray],
    engine: Engine,
) -> None:  # fmt: skip
    wanted = [(deltas.spam, TEXTS[:2]), (deltas.topic, TEXTS), (deltas.emotion, TEXTS[3:4]), (deltas.spam, TEXTS[2:])]
    ran = run(*(group_of(file, *texts) for file, texts in wanted))
    assert len(ran.outcomes) == 4
    for outcome, (file, texts) in zip(ran.outcomes, wanted, strict=True):
        assert are(outcome, logits(file, *texts))
    assert not are(ran.outcomes[0], logits(deltas.topic, *TEXTS[:2])[:, :2])
    assert ran.computing > 0
    assert ran.switching > 0
    assert engine.verify().result(20) == []


def test_two_kinds_may_ask_one_task_in_one_batch_without_a_switch(
    run: Callable[..., Ran], group_of: Callable[..., Group], deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    run(group_of(deltas.spam, "rain"))
    ran = run(
        group_of(deltas.spam, "rain"), group_of(deltas.spam, "sun", pipeline=PIPELINES["zero-shot-classification"])
    )
    assert are(ran.outcomes[0], logits(deltas.spam, "rain"))
    assert are(ran.outcomes[1], logits(deltas.spam, "sun"))
    assert ran.switching == 0


def test_a_head_that_raises_fails_alone(
    run: Callable[..., Ran], group_of: Callable[..., Group], deltas: Deltas, logits: Callable[..., np.ndarray],
    engine: Engine,
) -> None:  # fmt: skip
    broken = group_of(deltas.topic, pipeline=Broken())
    ran = run(group_of(deltas.spam), broken, group_of(deltas.topic), broken)
    assert are(ran.outcomes[0], logits(deltas.spam))
    assert isinstance(ran.outcomes[1], ZeroDivisionError)
    assert are(ran.outcomes[2], logits(deltas.topic))
    assert isinstance(ran.outcomes[3], ZeroDivisionError)
    assert engine.verify().result(20) == []


def test_a_group_that_gives_fewer_results_than_rows_fails_alone(
    run: Callable[..., Ran], group_of: Callable[..., Group], deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    ran = run(group_of(deltas.spam, pipeline=Forgetful()), group_of(deltas.spam))
    assert isinstance(ran.outcomes[0], ValueError)
    assert "5 results for 6 rows" in str(ran.outcomes[0])
    assert are(ran.outcomes[1], logits(deltas.spam))


def test_a_group_whose_delta_cannot_be_put_in_fails_alone(
    run: Callable[..., Ran], group_of: Callable[..., Group], deltas: Deltas, logits: Callable[..., np.ndarray],
    resident: ResidentModel, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spam, topic = group_of(deltas.spam), group_of(deltas.topic)
    real = resident.activate

    def activate(attached: Any) -> None:
        if attached is spam.task.attached:
            raise ExchangeError("the device is gone")
        real(attached)

    monkeypatch.setattr(resident, "activate", activate)
    ran = run(topic, spam, topic)
    assert are(ran.outcomes[0], logits(deltas.topic))
    assert isinstance(ran.outcomes[1], ExchangeError)
    assert are(ran.outcomes[2], logits(deltas.topic))


def test_a_head_that_needs_its_whole_model_gets_it(
    run: Callable[..., Ran], group_of: Callable[..., Group], deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    kind = Demanding()
    kind.outputs = []
    ran = run(group_of(deltas.spam, pipeline=kind))
    assert are(ran.outcomes[0], logits(deltas.spam))
    assert [output is None for output in kind.outputs] == [False, True]


def test_a_model_that_is_known_not_to_split_runs_whole(
    run: Callable[..., Ran], group_of: Callable[..., Group], deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    kind = Demanding()
    kind.outputs = []
    group = group_of(deltas.spam, pipeline=kind)
    group.task.model.splits = False
    assert are(run(group).outcomes[0], logits(deltas.spam))
    assert kind.outputs == [None]


def test_a_switch_is_counted_where_the_task_changes_and_only_there(
    run: Callable[..., Ran], group_of: Callable[..., Group], deltas: Deltas, engine: Engine
) -> None:
    spam, topic = group_of(deltas.spam, "rain"), group_of(deltas.topic, "rain")
    engine.call(engine._resident.revert).result(20)
    before = engine._metrics.swaps._value.get()
    assert [run(group).switching > 0 for group in (spam, spam, topic, spam)] == [True, False, True, True]
    assert engine._metrics.swaps._value.get() == before + 3


# Another executor


class AllThatWaits:
    """An executor that takes the rows of all keys at once, and has them run by exchange."""

    def __init__(self, exchange: Executor) -> None:
        self._exchange = exchange
        self.batches: list[Batch] = []

    def choose(self, line: Line[T], now: float, free: int) -> list[Row[T]]:
        return [row for queue in line.queues.values() for row in queue.rows.values()]

    def changes_weights(self, rows: Sequence[Row[T]]) -> bool:
        return self._exchange.changes_weights(rows)

    def backlog_seconds(self, line: Line[T]) -> float:
        return self._exchange.backlog_seconds(line)

    def run(self, batch: Batch, turn: Turn) -> Ran:
        self.batches.append(batch)
        return self._exchange.run(batch, turn)


def test_the_engine_runs_whatever_batches_its_executor_chooses(
    engine: Engine, deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    files, kinds = (deltas.spam, deltas.topic, deltas.emotion, deltas.spam), (CLASSIFY, CLASSIFY, Broken(), CLASSIFY)

    async def ask(task: Loaded, kind: Pipeline) -> Any:
        return (await engine.answer(task, kind, task.spec.encoder(TEXTS), FOREVER))[0]

    async def all_at_once() -> list[Any]:
        tasks = [await engine.tiers.acquire(file.digest) for file in files]
        with Blocked(engine):
            asked = [asyncio.create_task(ask(task, kind)) for task, kind in zip(tasks, kinds, strict=True)]
            await until(lambda: engine.waiting == 4 * len(TEXTS))
        return await asyncio.gather(*asked, return_exceptions=True)

    assert isinstance(engine._executor, Exchange)
    engine._executor = executor = AllThatWaits(engine._executor)
    found = asyncio.run(all_at_once())
    assert [len(batch.groups) for batch in executor.batches] == [3]
    assert [len(group.rows) for group in executor.batches[0].groups] == [12, 6, 6]
    for file, outcome in zip((deltas.spam, deltas.topic), found, strict=False):
        assert are(outcome, logits(file))
    assert isinstance(found[2], InternalError)
    assert are(found[3], logits(deltas.spam))
