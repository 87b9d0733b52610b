"""Batches that hold rows of several tasks: each row as its own task's dedicated model answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holding import Blocked, until
from mixing import Bench
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ken_core import DeltaFile, deltafile, extract, open_tuned
from ken_core.entries import LowRank
from serving.engine.mixed import Mixed
from serving.store import Store
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny


@pytest.fixture
def bench(tiny: Tiny, embedded_url: str, namespace: str, deltas: Deltas, tmp_path: Path) -> Iterator[Bench]:
    store = Store(embedded_url, namespace)
    for file in (deltas.emotion, deltas.topic, deltas.spam, deltas.spam_2):
        store.deltas.put(file)
    made = Bench(tiny, store, tmp_path)
    yield made
    made.engine.stop()


@pytest.fixture(scope="session")
def low_rank(tiny: Tiny) -> DeltaFile:
    """A delta with factors for one matrix."""
    delta = extract(tiny.base, open_tuned(str(tiny.tuned("mixed-low-rank", ["no", "yes"], seed=74))))
    name = "encoder.layer.0.attention.self.query.weight"
    rows, columns = tiny.base.backbone_tensors[name].shape
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, columns), (rows, 2)))
    sparse = {n: entry for n, entry in delta.sparse.items() if n != name}
    made = replace(delta, sparse=sparse, lowrank={name: LowRank(a, b, 0.1)})
    return deltafile.write(made, tiny.base, tiny.folder / "mixed-low-rank.ken")


@pytest.fixture
def roomy(tiny: Tiny, embedded_url: str, namespace: str, deltas: Deltas, low_rank: DeltaFile, tmp_path: Path) -> Any:
    """One with room for full tensors."""
    store = Store(embedded_url, namespace)
    for file in (deltas.topic, deltas.spam, low_rank):
        store.deltas.put(file)
    made = Bench(tiny, store, tmp_path, materialised_bytes=1 << 30)
    yield made
    made.engine.stop()


@pytest.fixture(scope="session")
def logits(tiny: Tiny) -> Callable[[DeltaFile, str], np.ndarray]:
    """What a dedicated model says to a text."""

    def ask(file: DeltaFile, text: str) -> np.ndarray:
        folder = tiny.applied(file)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.inference_mode():
            found: np.ndarray = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits.numpy()
        return found[0]

    return ask


def test_rows_of_many_tasks_run_in_one_forward_pass(bench: Bench, deltas: Deltas, logits: Any) -> None:
    files = [deltas.emotion, deltas.topic, deltas.spam, deltas.spam_2]
    asked = [(files[n % 4], TEXTS[0]) for n in range(8)]
    answers = bench.ask_all(asked)
    assert bench.forward_passes() == 1
    for (file, text), (ours, mixed) in zip(asked, answers, strict=True):
        assert mixed
        np.testing.assert_allclose(ours, logits(file, text), atol=1e-5)
    assert not bench.engine.verify().result()


def test_a_head_that_fails_fails_alone(
    bench: Bench, deltas: Deltas, logits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks() -> None:
        loaded = await bench.engine.tiers.acquire(deltas.topic.digest)
        loaded.model.whole.classifier.weight.data = torch.zeros(1, 1)
        bench.engine.tiers.release(loaded)

    asyncio.run(breaks())

    async def run() -> list[Any]:
        bench.engine.tiers.release(await bench.engine.tiers.acquire(deltas.spam.digest))
        with Blocked(bench.engine):
            waiting = [asyncio.create_task(bench.ask(file, TEXTS[0])) for file in (deltas.topic, deltas.spam)]
            await until(lambda: bench.engine.waiting == 2)
        return await asyncio.gather(*waiting, return_exceptions=True)

    broken, (sound, mixed) = asyncio.run(run())
    assert isinstance(broken, Exception)
    assert mixed
    np.testing.assert_allclose(sound[0], logits(deltas.spam, TEXTS[0]), atol=1e-5)


def test_one_task_alone_is_put_into_the_weights_once_that_pays(bench: Bench, deltas: Deltas) -> None:
    assert isinstance(bench.engine._executor, Mixed)
    for _ in range(200):
        _, mixed = asyncio.run(bench.ask(deltas.topic, TEXTS[0]))
        if not mixed:
            break
    assert not mixed
    _, mixed = asyncio.run(bench.ask(deltas.topic, TEXTS[0]))
    assert not mixed


def test_a_mixed_batch_after_an_exchange_finds_the_base(bench: Bench, deltas: Deltas, logits: Any) -> None:
    for _ in range(200):
        if not asyncio.run(bench.ask(deltas.topic, TEXTS[0]))[1]:
            break
    assert bench.resident.active is not None
    asked = [(deltas.topic, TEXTS[1]), (deltas.spam, TEXTS[2]), (deltas.emotion, TEXTS[0])] * 4
    for (file, text), (ours, _) in zip(asked, bench.ask_all(asked), strict=True):
        np.testing.assert_allclose(ours, logits(file, text), atol=1e-5)


def test_a_low_rank_task_mixes_and_gives_the_answers_of_whole_matrices(
    roomy: Bench, deltas: Deltas, low_rank: DeltaFile, logits: Any
) -> None:
    asked = [(low_rank, TEXTS[0]), (deltas.spam, TEXTS[0]), (low_rank, TEXTS[1])]
    for (file, text), (ours, mixed) in zip(asked, roomy.ask_all(asked), strict=True):
        assert mixed
        np.testing.assert_allclose(ours, logits(file, text), atol=1e-5)


def test_a_task_that_got_full_tensors_runs_by_exchange_and_its_neighbours_still_mix(
    roomy: Bench, deltas: Deltas, low_rank: DeltaFile, logits: Any
) -> None:
    for file in (deltas.topic, low_rank):
        for _ in range(200):
            ours, _ = asyncio.run(roomy.ask(file, TEXTS[0]))
            np.testing.assert_allclose(ours[0], logits(file, TEXTS[0]), atol=1e-5)
            if roomy.engine.tiers.tier_of(file.digest) == "materialised":
                break
        assert roomy.engine.tiers.tier_of(file.digest) == "materialised"
        assert "full tensors" in roomy.engine.tiers.describe([file.digest]).unmixed[file.digest]
    asked = [(deltas.topic, TEXTS[0]), (deltas.spam, TEXTS[1]), (low_rank, TEXTS[2])]
    for (file, text), (ours, _) in zip(asked, roomy.ask_all(asked), strict=True):
        np.testing.assert_allclose(ours, logits(file, text), atol=1e-5)
    assert not roomy.engine.verify().result()


def test_what_waits_is_expected_to_take_less_where_it_can_mix(
    bench: Bench, deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> tuple[float, float]:
        files = [deltas.emotion, deltas.topic, deltas.spam, deltas.spam_2]
        for file in files:
            bench.engine.tiers.release(await bench.engine.tiers.acquire(file.digest))
        executor = bench.engine._executor
        with Blocked(bench.engine):
            waiting = [asyncio.create_task(bench.ask(file, TEXTS[0])) for file in files * 2]
            await until(lambda: bench.engine.waiting == 8)
            mixing = executor.backlog_seconds(bench.engine._line)
            with monkeypatch.context() as patch:
                patch.setattr("serving.tiers.loaded.Loaded.mixes", False)
                alone = executor.backlog_seconds(bench.engine._line)
        await asyncio.gather(*waiting)
        return mixing, alone

    mixing, alone = asyncio.run(run())
    assert 0 < mixing < alone / 2
