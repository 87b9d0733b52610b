"""Several batches at once on one copy of the weights, and one alone where the weights change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holding import Blocked, until
from mixing import CLASSIFY, Bench
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ken_core import DeltaFile
from serving.engine.cores import concurrent_batches
from serving.engine.window import Limits
from serving.store import Store
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny


class Together(type(CLASSIFY)):  # type: ignore[misc]
    """The classifier, each batch of which waits for another one that runs at the same time."""

    def __init__(self) -> None:
        self.meeting = threading.Barrier(2)

    def run_head(self, model: Any, output: Any, inputs: Any) -> Any:
        self.meeting.wait(20)
        return super().run_head(model, output, inputs)


class Counting(type(CLASSIFY)):  # type: ignore[misc]
    """The classifier, which notes how many CPU threads its batches have."""

    kind = "counting"

    def __init__(self) -> None:
        self.threads: list[int] = []

    def run_head(self, model: Any, output: Any, inputs: Any) -> Any:
        self.threads.append(torch.get_num_threads())
        return super().run_head(model, output, inputs)


@pytest.fixture
def make_bench(tiny: Tiny, embedded_url: str, namespace: str, deltas: Deltas, tmp_path: Path) -> Iterator[Any]:
    store = Store(embedded_url, namespace)
    for file in (deltas.emotion, deltas.topic, deltas.spam, deltas.spam_2):
        store.deltas.put(file)
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(tiny, store, tmp_path, batches=2, threads=2, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.engine.stop()


@pytest.fixture(scope="session")
def logits(tiny: Tiny) -> Callable[[DeltaFile, str], np.ndarray]:
    """What a dedicated model says to a text."""
    models: dict[str, Any] = {}

    def ask(file: DeltaFile, text: str) -> np.ndarray:
        if file.digest not in models:
            folder = tiny.applied(file)
            model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            models[file.digest] = model, AutoTokenizer.from_pretrained(folder)
        model, tokenizer = models[file.digest]
        with torch.inference_mode():
            found: np.ndarray = model(**tokenizer(text, return_tensors="pt")).logits.numpy()
        return found[0]

    return ask


def test_two_batches_run_at_once_and_divide_what_waits(
    make_bench: Callable[..., Bench], deltas: Deltas, logits: Any
) -> None:
    bench, together = make_bench(), Together()

    async def run() -> list[Any]:
        for file in (deltas.topic, deltas.spam):
            bench.engine.tiers.release(await bench.engine.tiers.acquire(file.digest))
        with Blocked(bench.engine):
            asked = [(file, text) for file in (deltas.topic, deltas.spam) for text in TEXTS[:1]]
            waiting = [asyncio.create_task(bench.ask(file, text, pipeline=together)) for file, text in asked]
            await until(lambda: bench.engine.waiting == 2)
        answers = await asyncio.gather(*waiting)
        return [(found[0], logits(*what)) for (found, _), what in zip(answers, asked, strict=True)]

    for ours, theirs in asyncio.run(run()):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert bench.forward_passes() == 2


def test_batches_of_the_task_in_the_weights_run_at_once_too(
    make_bench: Callable[..., Bench], deltas: Deltas, logits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, together = make_bench(), Together()
    monkeypatch.setattr("serving.tiers.loaded.Loaded.mixes", False)
    asyncio.run(bench.ask(deltas.spam, TEXTS[0]))
    assert bench.resident.active is not None

    async def run() -> Any:
        with Blocked(bench.engine):
            waiting = asyncio.create_task(bench.ask(deltas.spam, *TEXTS[:2], pipeline=together))
            await until(lambda: bench.engine.waiting == 2)
        return await waiting

    answers, mixed = asyncio.run(run())
    assert not mixed
    for ours, text in zip(answers, TEXTS[:2], strict=True):
        np.testing.assert_allclose(ours, logits(deltas.spam, text), atol=1e-5)


def test_one_row_that_comes_to_an_idle_engine_has_all_threads_and_many_rows_divide_them(
    make_bench: Callable[..., Bench], deltas: Deltas
) -> None:
    bench, counting = make_bench(), Counting()
    asyncio.run(bench.ask(deltas.topic, TEXTS[0], pipeline=counting))
    asyncio.run(bench.ask(deltas.topic, TEXTS[0], pipeline=counting))
    assert counting.threads == [2, 2]

    async def many() -> None:
        bench.engine.tiers.release(await bench.engine.tiers.acquire(deltas.spam.digest))
        with Blocked(bench.engine):
            asked = [
                asyncio.create_task(bench.ask(f, TEXTS[0], pipeline=counting)) for f in (deltas.topic, deltas.spam)
            ]
            await until(lambda: bench.engine.waiting == 2)
        await asyncio.gather(*asked)

    asyncio.run(many())
    assert counting.threads[2:] == [1, 1]


@pytest.mark.parametrize("limits", [Limits(), Limits(rows=2)], ids=["large batches", "small batches"])
def test_every_answer_is_its_own_tasks_while_batches_mix_exchange_and_tasks_change_tier(
    make_bench: Callable[..., Bench], deltas: Deltas, logits: Any, monkeypatch: pytest.MonkeyPatch, limits: Limits
) -> None:
    bench = make_bench(limits=limits, materialised_bytes=1 << 20)
    files = [deltas.emotion, deltas.topic, deltas.spam, deltas.spam_2]
    mixes = property(lambda task: not task.unmixed and task.digest != deltas.spam_2.digest)
    monkeypatch.setattr("serving.tiers.loaded.Loaded.mixes", mixes)

    async def client(number: int) -> int:
        dice, mixed_ones = np.random.default_rng(number), 0
        for _ in range(12):
            file, text = files[dice.integers(4)], TEXTS[dice.integers(len(TEXTS))]
            (ours,), mixed = await bench.ask(file, text)
            np.testing.assert_allclose(ours, logits(file, text), atol=1e-5)
            mixed_ones += mixed
        return mixed_ones

    async def verify() -> None:
        for _ in range(5):
            assert await asyncio.wrap_future(bench.engine.verify()) == []
            await asyncio.sleep(0.01)

    async def run() -> Any:
        return await asyncio.gather(*(client(number) for number in range(8)), verify())

    for file in files:
        logits(file, TEXTS[0])
    *mixed, _ = asyncio.run(run())
    assert sum(mixed) > 0
    assert bench.engine.verify().result(20) == []


def test_a_call_has_the_weights_alone(make_bench: Callable[..., Bench], deltas: Deltas) -> None:
    bench = make_bench()
    running, at_calls = threading.Semaphore(2), []

    class Noting(type(CLASSIFY)):  # type: ignore[misc]
        kind = "noting"

        def run_head(self, model: Any, output: Any, inputs: Any) -> Any:
            with running:
                threading.Event().wait(0.01)
                return super().run_head(model, output, inputs)

    def call() -> None:
        got = [running.acquire(blocking=False) for _ in range(2)]
        at_calls.append(all(got))
        for _ in filter(None, got):
            running.release()

    async def run() -> None:
        noting = Noting()
        asked = [asyncio.create_task(bench.ask(deltas.topic, text, pipeline=noting)) for text in TEXTS * 4]
        for _ in range(5):
            await asyncio.wrap_future(bench.engine.call(call))
        await asyncio.gather(*asked)

    asyncio.run(run())
    assert at_calls == [True] * 5


def test_stopping_ends_all_threads_and_reverts(make_bench: Callable[..., Bench], deltas: Deltas) -> None:
    bench = make_bench()
    asyncio.run(bench.ask(deltas.topic))
    threads = bench.engine._threads
    assert [thread.is_alive() for thread in threads] == [True, True]
    bench.engine.stop()
    assert [thread.is_alive() for thread in threads] == [False, False]
    assert bench.resident.active is None


@pytest.mark.parametrize(
    ("asked", "threads", "device", "expected"),
    [(0, 1, "cpu", 1), (0, 2, "cpu", 2), (0, 16, "cpu", 4), (8, 16, "cpu", 8), (8, 2, "cpu", 2), (0, 16, "cuda", 1)],
)
def test_as_many_batches_run_at_once_as_threads_allow(asked: int, threads: int, device: str, expected: int) -> None:
    assert concurrent_batches(asked, threads, device) == expected
