"""The thread that owns the weights: what is held, what is let go, what happens when an exchange fails."""

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
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ken_core import DeltaFile, PoisonedError, ResidentModel, open_base
from ken_core.kernels import Packed, exchange_for
from serving.admission import Admission, AdmissionLimits
from serving.engine.engine import Engine
from serving.engine.window import Limits
from serving.errors import OverloadedError, UnavailableError
from serving.pipelines import PIPELINES
from serving.store import Store
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache, Found
from serving.tiers.files import DeltaFiles
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny

FOREVER = 1e12
CLASSIFY = PIPELINES["text-classification"]


class Exchange:
    """The real exchange, made to fail on demand: before it touches anything, or after all of it."""

    def __init__(self) -> None:
        self._failures: list[str] = []

    def fail_next(self, how: str, times: int = 1) -> None:
        self._failures = [how] * times

    def factory(self, device: torch.device, dtype: torch.dtype) -> Callable[[torch.Tensor, Packed], None]:
        real = exchange_for(device, dtype)

        def exchange(arena: torch.Tensor, packed: Packed) -> None:
            failing = self._failures.pop() if self._failures else None
            if failing != "before":
                real(arena, packed)
            if failing:
                raise RuntimeError("the device is gone")

        return exchange


class Unrestorable(ResidentModel):
    """A model whose checkpoint cannot be read any more."""

    lost = False

    def checkpoint_tensor(self, name: str) -> torch.Tensor:
        if self.lost:
            raise OSError("input/output error")
        return super().checkpoint_tensor(name)


class Slow(DeltaCache):
    """A cache that loads when the test lets it."""

    may_load: threading.Event
    loads: int

    def load(self, digest: str) -> Found:
        self.loads += 1
        assert self.may_load.wait(20)
        return super().load(digest)


class Bench:
    """An engine with its parts at hand."""

    def __init__(self, tiny: Tiny, store: Store, folder: Path, **options: Any) -> None:
        self.exchange = Exchange()
        self.resident = Unrestorable(
            open_base(str(tiny.base_folder)), exchange_factory=self.exchange.factory, switch_factory=None
        )
        files = DeltaFiles(folder / "deltas", 1 << 30, store)
        self.cache = Slow(files, 1 << 30, self.resident.checkpoint, self.resident.fingerprint.digest)
        self.cache.may_load, self.cache.loads = threading.Event(), 0
        self.cache.may_load.set()
        self.metrics = Metrics("bench")
        self.engine = Engine(self.resident, self.cache, self.metrics, **options)
        self.engine.start()

    async def ask(self, file: DeltaFile, *texts: str, deadline: float = FOREVER) -> list[np.ndarray]:
        """Logits for texts."""
        loaded = await self.engine.tiers.acquire(file.digest)
        try:
            results, _ = await self.engine.answer(loaded, CLASSIFY, loaded.spec.encoder(texts or TEXTS), deadline)
        finally:
            self.engine.tiers.release(loaded)
        return results


@pytest.fixture
def make_bench(tiny: Tiny, embedded_url: str, namespace: str, deltas: Deltas, tmp_path: Path) -> Iterator[Any]:
    store = Store(embedded_url, namespace)
    for file in (deltas.emotion, deltas.topic, deltas.spam, deltas.spam_2):
        store.deltas.put(file)
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(tiny, store, tmp_path, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.cache.may_load.set()
        bench.engine.stop()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


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


def test_a_task_answers_as_its_own_model_and_not_as_its_neighbours(
    bench: Bench, deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    found = np.stack(asyncio.run(bench.ask(deltas.spam)))
    np.testing.assert_allclose(found, logits(deltas.spam), atol=1e-5)
    assert np.abs(found - logits(deltas.spam_2)).max() > 0.01


def test_results_come_in_the_order_of_the_inputs_whatever_the_batches(
    make_bench: Callable[..., Bench], deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    bench = make_bench(limits=Limits(rows=2, tokens=64))
    np.testing.assert_allclose(np.stack(asyncio.run(bench.ask(deltas.spam))), logits(deltas.spam), atol=1e-5)


def test_the_base_is_bit_for_bit_itself_after_tasks_took_turns(bench: Bench, deltas: Deltas) -> None:
    async def turns() -> None:
        for file in (deltas.emotion, deltas.topic, deltas.spam, deltas.emotion):
            await bench.ask(file)

    asyncio.run(turns())
    assert bench.engine.verify().result(20) == []


def test_verifying_does_not_cost_a_task_its_place(
    bench: Bench, deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    asyncio.run(bench.ask(deltas.spam))
    bench.engine.verify().result(20)
    np.testing.assert_allclose(np.stack(asyncio.run(bench.ask(deltas.spam))), logits(deltas.spam), atol=1e-5)


def test_a_call_runs_on_the_thread_of_the_engine(bench: Bench) -> None:
    assert bench.engine.call(lambda: threading.current_thread().name).result(20) == "ken-engine"


def test_a_call_that_fails_hands_its_error_over_and_the_engine_goes_on(bench: Bench, deltas: Deltas) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        bench.engine.call(fail).result(20)
    asyncio.run(bench.ask(deltas.spam))


# Loading


def test_a_task_asked_for_by_many_at_once_is_loaded_once(bench: Bench, deltas: Deltas) -> None:
    async def crowd() -> None:
        await asyncio.gather(*(bench.ask(deltas.spam) for _ in range(30)))

    asyncio.run(crowd())
    assert bench.cache.loads == 1


def test_who_stops_waiting_for_a_load_does_not_take_it_from_the_others(bench: Bench, deltas: Deltas) -> None:
    async def two() -> list[np.ndarray]:
        bench.cache.may_load.clear()
        hasty = asyncio.create_task(bench.ask(deltas.spam))
        patient = asyncio.create_task(bench.ask(deltas.spam))
        await until(lambda: bench.cache.loads == 1)
        hasty.cancel()
        await asyncio.gather(hasty, return_exceptions=True)
        bench.cache.may_load.set()
        return await patient

    assert len(asyncio.run(two())) == len(TEXTS)


def test_a_task_that_is_loaded_answers_while_another_is_loading(bench: Bench, deltas: Deltas) -> None:
    async def meanwhile() -> None:
        await bench.ask(deltas.spam)
        bench.cache.may_load.clear()
        loading = asyncio.create_task(bench.ask(deltas.topic))
        await until(lambda: bench.cache.loads == 2)
        await bench.ask(deltas.spam)
        assert not loading.done()
        bench.cache.may_load.set()
        await loading

    asyncio.run(meanwhile())


def test_a_load_that_failed_is_tried_again(bench: Bench, deltas: Deltas, embedded_url: str, namespace: str) -> None:
    store = Store(embedded_url, namespace)
    store.garbage.collect()

    with pytest.raises(UnavailableError, match="does not hold"):
        asyncio.run(bench.ask(deltas.spam))
    store.deltas.put(deltas.spam)
    asyncio.run(bench.ask(deltas.spam))


# The budget of what is on the device


def test_idle_tasks_leave_the_device_when_the_budget_is_full(make_bench: Callable[..., Bench], deltas: Deltas) -> None:
    bench = make_bench(packed_bytes=1)

    async def one_after_another() -> None:
        for file in (deltas.emotion, deltas.topic, deltas.spam):
            await bench.ask(file)

    asyncio.run(one_after_another())
    bench.engine.verify().result(20)
    asyncio.run(bench.ask(deltas.spam_2))
    one = asyncio.run(bench.engine.tiers.acquire(deltas.spam_2.digest)).attached.nbytes
    assert bench.engine.tiers.packed_nbytes == one


def test_tasks_in_use_stay_on_the_device_whatever_the_budget(make_bench: Callable[..., Bench], deltas: Deltas) -> None:
    one = asyncio.run(make_bench().engine.tiers.acquire(deltas.spam.digest)).nbytes
    bench = make_bench(packed_bytes=one + 1)

    async def hold() -> None:
        held = await bench.engine.tiers.acquire(deltas.spam.digest)
        for file in (deltas.emotion, deltas.topic, deltas.spam_2):
            bench.engine.tiers.release(await bench.engine.tiers.acquire(file.digest))
        assert await bench.engine.tiers.acquire(deltas.spam.digest) is held
        assert bench.cache.loads == 4

    asyncio.run(hold())


def test_the_active_task_stays_on_the_device_whatever_the_budget(
    make_bench: Callable[..., Bench], deltas: Deltas
) -> None:
    bench = make_bench(packed_bytes=1)

    async def activate_then_load() -> None:
        await bench.ask(deltas.spam)
        bench.engine.tiers.release(await bench.engine.tiers.acquire(deltas.topic.digest))
        await bench.engine.tiers.acquire(deltas.spam.digest)
        assert bench.cache.loads == 2

    asyncio.run(activate_then_load())


def test_tasks_that_do_not_fit_together_all_get_answered(
    make_bench: Callable[..., Bench], deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    bench = make_bench(packed_bytes=1)
    files = (deltas.emotion, deltas.topic, deltas.spam, deltas.spam_2) * 5

    async def all_at_once() -> list[list[np.ndarray]]:
        return await asyncio.gather(*(bench.ask(file, TEXTS[0]) for file in files))

    for file, found in zip(files, asyncio.run(all_at_once()), strict=True):
        np.testing.assert_allclose(np.stack(found), logits(file, TEXTS[0]), atol=1e-5)


# The queue


def test_a_full_queue_refuses_with_the_time_the_backlog_will_take(
    make_bench: Callable[..., Bench], deltas: Deltas
) -> None:
    bench = make_bench(admission=Admission(AdmissionLimits(queue_rows=3)))

    async def fill() -> None:
        await bench.ask(deltas.spam)
        with Blocked(bench.engine):
            first = asyncio.create_task(bench.ask(deltas.spam, "rain", "sun"))
            await until(lambda: bench.engine.waiting == 2)
            with pytest.raises(OverloadedError, match="2 inputs wait already") as found:
                await bench.ask(deltas.spam, "rain", "sun")
            assert found.value.retry_after is not None
            assert found.value.retry_after >= 1
            second = asyncio.create_task(bench.ask(deltas.spam, "rain"))
            await until(lambda: bench.engine.waiting == 3)
        assert [len(a) for a in await asyncio.gather(first, second)] == [2, 1]

    asyncio.run(fill())


def test_a_request_larger_than_the_queue_is_answered_when_nothing_waits(
    make_bench: Callable[..., Bench], deltas: Deltas
) -> None:
    bench = make_bench(admission=Admission(AdmissionLimits(queue_rows=2)))
    assert len(asyncio.run(bench.ask(deltas.spam))) == len(TEXTS)


def test_what_was_queued_is_answered_before_the_engine_ends_and_nothing_after(
    make_bench: Callable[..., Bench], deltas: Deltas
) -> None:
    bench = make_bench()

    async def stop() -> None:
        await bench.ask(deltas.spam)
        loaded = await bench.engine.tiers.acquire(deltas.spam.digest)
        with Blocked(bench.engine):
            queued = asyncio.create_task(bench.ask(deltas.spam))
            await until(lambda: bench.engine.waiting == len(TEXTS))
            stopping = threading.Thread(target=bench.engine.stop)
            stopping.start()
        assert len(await queued) == len(TEXTS)
        await asyncio.to_thread(stopping.join, 20)
        with pytest.raises(UnavailableError):
            await bench.engine.answer(loaded, CLASSIFY, loaded.spec.encoder(["rain"]), FOREVER)
        with pytest.raises(UnavailableError):
            bench.engine.check()

    asyncio.run(stop())
    assert bench.resident.active is None


def test_a_call_after_the_end_is_told_so(bench: Bench) -> None:
    bench.engine.stop()
    with pytest.raises(UnavailableError):
        bench.engine.verify().result(1)


# Failing exchanges


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_failing_injection_is_repeated_and_the_request_answered(
    how: str, bench: Bench, deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    bench.exchange.fail_next(how)
    np.testing.assert_allclose(np.stack(asyncio.run(bench.ask(deltas.spam))), logits(deltas.spam), atol=1e-5)
    assert bench.engine.verify().result(20) == []


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_failing_reversal_is_repaired_for_both_tasks(
    how: str, bench: Bench, deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    async def turns() -> None:
        await bench.ask(deltas.topic)
        bench.exchange.fail_next(how)
        for file in (deltas.spam, deltas.topic, deltas.spam):
            np.testing.assert_allclose(np.stack(await bench.ask(file)), logits(file), atol=1e-5)

    asyncio.run(turns())
    assert bench.engine.verify().result(20) == []


def test_an_injection_that_keeps_failing_fails_its_request_and_no_other(
    bench: Bench, deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    bench.exchange.fail_next("after", times=2)
    with pytest.raises(Exception, match="the device is gone"):
        asyncio.run(bench.ask(deltas.spam))
    for file in (deltas.topic, deltas.spam):
        np.testing.assert_allclose(np.stack(asyncio.run(bench.ask(file))), logits(file), atol=1e-5)
    bench.engine.check()
    assert bench.engine.verify().result(20) == []


def test_weights_that_cannot_be_restored_answer_nothing_more(bench: Bench, deltas: Deltas) -> None:
    for file in (deltas.spam, deltas.topic):
        asyncio.run(bench.ask(file))
    bench.engine.check()
    bench.exchange.fail_next("after")
    bench.resident.lost = True
    for file in (deltas.spam, deltas.topic, deltas.spam):
        with pytest.raises(UnavailableError, match="unknown state"):
            asyncio.run(bench.ask(file))
    with pytest.raises(PoisonedError, match="input/output error"):
        bench.engine.check()
    with pytest.raises(PoisonedError):
        bench.engine.verify().result(20)


# Full tensors for the tasks asked for most


def ask_often(bench: Bench, file: DeltaFile, times: int) -> list[list[np.ndarray]]:
    async def often() -> list[list[np.ndarray]]:
        return [await bench.ask(file) for _ in range(times)]

    return asyncio.run(often())


def tier_of(bench: Bench, file: DeltaFile) -> str | None:
    for loaded in bench.engine.tiers.held():
        if loaded.digest == file.digest:
            return "materialised" if loaded.attached.materialised else "packed"
    return None


def is_materialised(bench: Bench, file: DeltaFile) -> bool:
    return tier_of(bench, file) == "materialised"


def test_a_task_asked_for_often_is_materialised_and_answers_the_same(
    make_bench: Callable[..., Bench], deltas: Deltas, eventually: Callable[..., None]
) -> None:
    bench = make_bench(materialised_bytes=1 << 30)
    (packed,) = ask_often(bench, deltas.spam, 1)
    ask_often(bench, deltas.spam, 10)
    eventually(lambda: is_materialised(bench, deltas.spam))
    ask_often(bench, deltas.topic, 1)
    assert tier_of(bench, deltas.topic) == "packed"
    for before, after in zip(packed, ask_often(bench, deltas.spam, 1)[0], strict=True):
        np.testing.assert_allclose(before, after, atol=1e-5)
    assert bench.engine.verify().result(20) == []


def test_without_a_budget_nothing_is_materialised(bench: Bench, deltas: Deltas) -> None:
    ask_often(bench, deltas.spam, 20)
    bench.engine.tiers._promotion.close()
    assert tier_of(bench, deltas.spam) == "packed"
    assert bench.engine.tiers.materialised_nbytes == 0


def test_a_hotter_task_takes_the_place_of_a_cooler_one(
    make_bench: Callable[..., Bench], deltas: Deltas, eventually: Callable[..., None], logits: Callable[..., np.ndarray]
) -> None:
    bench = make_bench(materialised_bytes=1 << 30)
    ask_often(bench, deltas.spam, 10)
    eventually(lambda: is_materialised(bench, deltas.spam))
    one = bench.engine.tiers.materialised_nbytes
    bench = make_bench(materialised_bytes=one + 1)
    ask_often(bench, deltas.spam, 10)
    eventually(lambda: is_materialised(bench, deltas.spam))
    ask_often(bench, deltas.spam_2, 12)
    assert tier_of(bench, deltas.spam_2) == "packed"
    ask_often(bench, deltas.spam_2, 30)
    eventually(lambda: is_materialised(bench, deltas.spam_2))
    eventually(lambda: tier_of(bench, deltas.spam) is None)
    assert bench.engine.tiers.materialised_nbytes <= one + 1
    for file in (deltas.spam, deltas.spam_2):
        np.testing.assert_allclose(np.stack(ask_often(bench, file, 1)[0]), logits(file), atol=1e-5)


def test_a_task_is_materialised_while_requests_wait_for_it(
    make_bench: Callable[..., Bench], deltas: Deltas, logits: Callable[..., np.ndarray]
) -> None:
    bench = make_bench(materialised_bytes=1 << 30, limits=Limits(rows=1, tokens=64))

    async def flood() -> list[list[np.ndarray]]:
        files = (deltas.spam, deltas.topic) * 40
        return await asyncio.gather(*(bench.ask(file, TEXTS[0]) for file in files))

    found = asyncio.run(flood())
    for at, file in enumerate((deltas.spam, deltas.topic)):
        for answer in found[at::2]:
            np.testing.assert_allclose(np.stack(answer), logits(file, TEXTS[0]), atol=1e-5)


def test_a_task_that_cannot_be_materialised_stays_packed_and_answers(
    make_bench: Callable[..., Bench], deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(materialised_bytes=1 << 30)
    ask_often(bench, deltas.spam, 1)
    real = bench.resident.attach

    def attach(delta: Any, *, materialised: bool = False) -> Any:
        if materialised:
            raise MemoryError("no room")
        return real(delta)

    monkeypatch.setattr(bench.resident, "attach", attach)
    assert len(ask_often(bench, deltas.spam, 20)) == 20
    assert tier_of(bench, deltas.spam) == "packed"


# The idle base


def test_an_idle_engine_checks_its_base_and_a_flipped_bit_ends_it(
    make_bench: Callable[..., Bench], deltas: Deltas, eventually: Callable[..., None]
) -> None:
    bench = make_bench(verify_seconds=0.05)
    ask_often(bench, deltas.spam, 1)
    eventually(lambda: bench.metrics.verified._value.get() > 0)
    bench.engine.check()
    bench.engine.call(lambda: bench.resident.revert()).result(20)
    bench.engine.call(lambda: next(bench.resident.backbone.parameters()).data.view(torch.int32)[0, 0].bitwise_xor_(1))
    eventually(lambda: bench.resident.poisoned is not None)
    with pytest.raises(PoisonedError, match="idle base"):
        bench.engine.check()
    with pytest.raises(UnavailableError):
        asyncio.run(bench.ask(deltas.spam))
