"""A whole replica without HTTP: real store, real engine, many tasks at once."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from histories import keeping
from holding import Blocked, deadlines_held, until
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ken_core import DeltaFile, deltafile
from serving.config import load_settings
from serving.errors import (
    DeadlineError,
    InvalidInputError,
    OverloadedError,
    StartError,
    StoreError,
    UnavailableError,
    UnfitDeltaError,
    UnknownTaskError,
    UnsupportedKindError,
)
from serving.replica.inference import Prediction
from serving.service import Service
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.store.urls import connect
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny, scores, write_base, write_tuned

Dedicated = Callable[[DeltaFile, str], dict[str, float]]

MakeService = Callable[..., Service]
Metric = Callable[..., float]


async def ask(service: Service, task: str, *texts: str, timeout: float = 20) -> Prediction:
    return await service.predict(service.table.resolve(task), texts or TEXTS, {}, timeout)


def is_answer_of(answer: Prediction, file: DeltaFile, dedicated: Dedicated, *texts: str) -> bool:
    expected = [dedicated(file, text) for text in texts or TEXTS]
    return answer.digest == file.digest and [scores(rows) for rows in answer.outputs] == [
        pytest.approx(row, abs=1e-5) for row in expected
    ]


# Answers


def test_interleaved_requests_over_three_tasks_each_get_their_own_models_answer(
    service: Service, deltas: Deltas, dedicated: Dedicated
) -> None:
    tasks = ["emotion", "topic", "spam"] * 20

    async def all_at_once() -> list[Prediction]:
        return await asyncio.gather(*(ask(service, task) for task in tasks))

    for task, answer in zip(tasks, asyncio.run(all_at_once()), strict=True):
        assert is_answer_of(answer, getattr(deltas, task), dedicated)


def test_a_task_says_how_long_an_input_it_takes(
    service: Service, tiny: Tiny, of_every_kind: dict[str, DeltaFile], publish: Callable[..., None], tmp_path: Path
) -> None:
    found = deltafile.load(of_every_kind["search"].path, tiny.base)
    assert found.embedding is not None
    short = replace(found, embedding=found.embedding.model_copy(update={"max_length": 16}))
    file = deltafile.write(short, tiny.base, tmp_path / "short.ken")
    publish("short", file)
    assert asyncio.run(service.longest_input(file.digest)) == 16
    assert asyncio.run(service.longest_input(service.table.resolve("spam"))) == 64


def test_the_comparison_tells_a_task_from_its_neighbour(
    service: Service, deltas: Deltas, dedicated: Dedicated, publish: Callable[..., None]
) -> None:
    """The control: two tasks with the same labels, so that only the weights differ."""
    publish("spam-2", deltas.spam_2)
    mine, neighbours = (asyncio.run(ask(service, task)) for task in ("spam", "spam-2"))
    assert is_answer_of(mine, deltas.spam, dedicated)
    assert scores(mine.outputs[0]) != pytest.approx(dedicated(deltas.spam_2, TEXTS[0]), abs=1e-2)
    assert scores(neighbours.outputs[0]) != pytest.approx(dedicated(deltas.spam, TEXTS[0]), abs=1e-2)


def test_a_delta_answers_otherwise_than_the_fine_tune_it_was_cut_from(
    service: Service, tiny: Tiny, deltas: Deltas
) -> None:
    """So the tests above compare with what was kept, not with the whole fine-tune."""
    folder = tiny.folder / "spam"
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        whole = AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits.softmax(-1)[0]
    found = scores(asyncio.run(ask(service, "spam", TEXTS[0])).outputs[0])
    assert found != pytest.approx({"ham": whole[0].item(), "spam": whole[1].item()}, abs=1e-3)


@pytest.mark.parametrize(("mixed", "ran"), [("off", "ken_swaps_total"), ("auto", "ken_batch_groups_count")])
def test_after_a_thousand_interleaved_requests_the_base_is_bit_for_bit_itself(
    mixed: str,
    ran: str,
    make_service: Callable[..., Service],
    publish: Callable[..., None],
    deltas: Deltas,
    dedicated: Dedicated,
    metric: Metric,
) -> None:
    for task in ("emotion", "topic", "spam"):
        publish(task, getattr(deltas, task))
    service = make_service(mixed=mixed)
    chance = random.Random(0)
    tasks = chance.choices(["emotion", "topic", "spam"], k=1000)

    async def in_turns() -> list[Prediction]:
        limit = asyncio.Semaphore(16)

        async def one(task: str) -> Prediction:
            async with limit:
                return await ask(service, task, TEXTS[len(task) % len(TEXTS)])

        return await asyncio.gather(*(one(task) for task in tasks))

    for task, answer in zip(tasks, asyncio.run(in_turns()), strict=True):
        assert is_answer_of(answer, getattr(deltas, task), dedicated, TEXTS[len(task) % len(TEXTS)])
    assert service.engine.verify().result(20) == []
    assert metric(service, ran) > 10


def test_a_new_version_takes_over_while_requests_flow_and_none_fails(
    service: Service, deltas: Deltas, dedicated: Dedicated, publish: Callable[..., None]
) -> None:
    async def clients() -> list[Prediction]:
        answers: list[Prediction] = []
        done = asyncio.Event()

        async def client() -> None:
            while not done.is_set():
                answers.append(await ask(service, "spam", TEXTS[0]))

        running = [asyncio.create_task(client()) for _ in range(4)]
        await until(lambda: len(answers) > 20)
        await asyncio.to_thread(publish, "spam", deltas.spam_2)
        switched = len(answers)
        await until(lambda: len(answers) > switched + 20)
        done.set()
        await asyncio.gather(*running)
        return answers

    answers = asyncio.run(clients())
    versions = {deltas.spam.digest: deltas.spam, deltas.spam_2.digest: deltas.spam_2}
    assert all(is_answer_of(a, versions[a.digest], dedicated, TEXTS[0]) for a in answers)
    assert {a.digest for a in answers[:20]} == {deltas.spam.digest}
    assert {a.digest for a in answers[-5:]} == {deltas.spam_2.digest}


def test_truncated_inputs_are_named_by_position(service: Service) -> None:
    answer = asyncio.run(ask(service, "spam", "rain", "rain " * 100, "sun"))
    assert answer.truncated == [1]


def test_timing_tells_of_queue_swap_and_model(exchanging: Service) -> None:
    first, second = (asyncio.run(ask(exchanging, "spam")).timing for _ in range(2))
    assert first.model > 0
    assert first.swap > 0
    assert second.swap == 0


def test_a_service_in_bfloat16_answers_as_the_applied_model_cast_to_it(
    make_service: MakeService, publish: Callable[..., None], tiny: Tiny, deltas: Deltas
) -> None:
    service = make_service(dtype="bfloat16", mixed="off")
    publish("spam", deltas.spam)
    folder = tiny.applied(deltas.spam)
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        expected = model(**inputs).logits[0].float()
    found = asyncio.run(service.predict(deltas.spam.digest, [TEXTS[0]], {"function_to_apply": "none"}, 20))
    assert scores(found.outputs[0]) == {"ham": expected[0].item(), "spam": expected[1].item()}
    assert service.engine.verify().result(20) == []


# Refusals


def test_parameters_the_kind_does_not_take_are_refused(service: Service, deltas: Deltas) -> None:
    with pytest.raises(InvalidInputError, match="pooling"):
        asyncio.run(service.predict(deltas.spam.digest, TEXTS, {"pooling": "mean"}, 20))


def test_a_task_of_an_unsupported_kind_is_refused_and_the_others_go_on(
    service: Service, tiny: Tiny, publish: Callable[..., None]
) -> None:
    publish("words", tiny.delta(tiny.filling("words", seed=50)))
    with pytest.raises(UnsupportedKindError, match="fill-mask"):
        asyncio.run(ask(service, "words"))
    asyncio.run(ask(service, "spam"))


@pytest.fixture
def foreign(tmp_path: Path) -> DeltaFile:
    """A delta of another base."""
    other = Tiny(tmp_path, write_base(tmp_path / "other-bert", seed=77))
    return other.delta(write_tuned(other.base_folder, tmp_path / "foreign", ["no", "yes"], seed=78))


def test_a_delta_of_another_base_is_refused_with_both_fingerprints(
    service: Service, foreign: DeltaFile, publish: Callable[..., None]
) -> None:
    publish("foreign", foreign)
    ours = service.resident.fingerprint.digest
    with pytest.raises(UnfitDeltaError, match=f"{foreign.manifest.base.fingerprint}.*{ours}"):
        asyncio.run(ask(service, "foreign"))
    asyncio.run(ask(service, "spam"))


def test_a_damaged_delta_in_the_store_is_unavailable_and_not_a_failure_of_the_server(
    service: Service, deltas: Deltas, publish: Callable[..., None], embedded_url: str, namespace: str
) -> None:
    publish("spam", deltas.spam_2)
    connect(embedded_url).set(f"ken:{namespace}:blob:{{{deltas.spam_2.digest}}}:0", b"damaged")
    with pytest.raises(StoreError, match=f"{deltas.spam_2.digest}.*damaged"):
        asyncio.run(ask(service, "spam"))


def test_what_is_no_delta_under_a_right_digest_can_never_be_served(
    service: Service, deltas: Deltas, tmp_path: Path, publish: Callable[..., None]
) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(b"garbage" * 100)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    publish("garbage", DeltaFile(path, deltas.spam.manifest, 700, digest))
    with pytest.raises(UnfitDeltaError, match=f"{digest} cannot be served"):
        asyncio.run(ask(service, "garbage"))


def test_an_input_the_model_cannot_take_fails_alone(
    service: Service, tiny: Tiny, deltas: Deltas, dedicated: Dedicated, publish: Callable[..., None]
) -> None:
    publish("beyond", tiny.delta(tiny.beyond_its_words()))

    async def both() -> tuple[Any, Prediction]:
        return await asyncio.gather(ask(service, "beyond"), ask(service, "spam"), return_exceptions=True)  # type: ignore[return-value]

    failed, answer = asyncio.run(both())
    assert isinstance(failed, UnfitDeltaError)
    assert "ids up to" in str(failed)
    assert is_answer_of(answer, deltas.spam, dedicated)
    assert service.engine.verify().result(20) == []


# Time


def test_a_request_whose_deadline_passes_in_the_queue_costs_no_forward_pass(
    service: Service, metric: Metric, eventually: Callable[..., None]
) -> None:
    async def too_late() -> None:
        await ask(service, "spam", "rain")
        with Blocked(service.engine), deadlines_held() as let:
            asked = asyncio.create_task(ask(service, "spam", "rain", timeout=0.05))
            await until(lambda: service.engine.waiting == 1)
            let()
            with pytest.raises(DeadlineError, match=r"no answer within 0\.05 s"):
                await asked
            assert service.engine.waiting == 1

    asyncio.run(too_late())
    eventually(lambda: service.engine.waiting == 0)
    assert service.engine.verify().result(20) == []
    assert metric(service, "ken_batch_rows_count") == 1
    assert metric(service, "ken_dropped_rows_total") == 1


def test_an_abandoned_request_costs_no_forward_pass(
    service: Service, metric: Metric, eventually: Callable[..., None]
) -> None:
    async def give_up() -> None:
        await ask(service, "spam", "rain")
        with Blocked(service.engine):
            asked = asyncio.create_task(ask(service, "spam", "rain", "sun"))
            await until(lambda: service.engine.waiting == 2)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(give_up())
    eventually(lambda: service.engine.waiting == 0)
    assert service.engine.verify().result(20) == []
    assert metric(service, "ken_batch_rows_count") == 1
    assert metric(service, "ken_dropped_rows_total", reason="abandoned") == 2


def test_an_abandoned_request_does_not_hold_its_task_on_the_device(service: Service, deltas: Deltas) -> None:
    async def give_up() -> int:
        await ask(service, "spam")
        with Blocked(service.engine):
            asked = asyncio.create_task(ask(service, "spam", "rain"))
            await until(lambda: service.engine.waiting == 1)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        loaded = await service.engine.tiers.acquire(deltas.spam.digest)
        service.engine.tiers.release(loaded)
        return loaded.users

    assert asyncio.run(give_up()) == 0


def held_up_loads(service: Service, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Loads of a service wait until it is set."""
    may_load, real = threading.Event(), service.cache.load

    def load(digest: str) -> Any:
        assert may_load.wait(20)
        return real(digest)

    monkeypatch.setattr(service.cache, "load", load)
    return may_load


def test_a_request_that_runs_out_of_time_while_its_delta_is_fetched_does_not_take_others_with_it(
    make_service: MakeService, publish: Callable[..., None], deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service()
    publish("spam", deltas.spam)
    may_load = held_up_loads(service, monkeypatch)

    async def hasty_and_patient() -> list[Any]:
        hasty, patient = (asyncio.create_task(ask(service, "spam", timeout=timeout)) for timeout in (0.1, 20))
        found = await asyncio.gather(hasty, return_exceptions=True)
        may_load.set()
        return [*found, await patient]

    hasty, patient = asyncio.run(hasty_and_patient())
    assert isinstance(hasty, DeadlineError)
    assert isinstance(patient, Prediction)


def test_inputs_that_wait_for_a_load_fill_the_queue_as_others_do(
    make_service: MakeService, publish: Callable[..., None], deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(queue_rows=3)
    publish("spam", deltas.spam)
    may_load = held_up_loads(service, monkeypatch)

    async def fill() -> list[Prediction]:
        waiting = [asyncio.create_task(ask(service, "spam", text)) for text in ("rain", "sun", "snow")]
        await until(lambda: service.admission.preparing == 3)
        with pytest.raises(OverloadedError, match="3 inputs wait already"):
            await ask(service, "spam", "hail")
        may_load.set()
        return await asyncio.gather(*waiting)

    assert len(asyncio.run(fill())) == 3
    assert service.admission.preparing == 0


# Life


def test_preloaded_tasks_are_on_the_device_before_the_replica_is_ready(
    make_service: MakeService, publish: Callable[..., None], deltas: Deltas, metric: Callable[..., float]
) -> None:
    publish("spam", deltas.spam)
    publish("topic", deltas.topic)
    service = make_service(preload=("spam",))
    assert service.admission.ready
    assert metric(service, "ken_cache_misses_total") == 1
    assert service.engine.tiers.tier_of(deltas.topic.digest) == "store"
    assert service.engine.tiers.packed_nbytes > 0


def test_a_replica_that_ray_starts_within_an_event_loop_preloads_too(
    make_service: MakeService, publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("spam", deltas.spam)
    publish("topic", deltas.topic)

    async def start() -> Service:
        return make_service(preload=("spam", "topic"))

    service = asyncio.run(start())
    for delta in (deltas.spam, deltas.topic):
        assert service.engine.tiers.tier_of(delta.digest) == "packed"


def test_a_preloaded_task_that_is_unknown_stops_the_start(make_service: MakeService) -> None:
    with pytest.raises(UnknownTaskError, match="no task 'nobody'"):
        make_service(preload=("nobody",))


def test_a_replica_admits_requests_only_between_start_and_drain(make_service: MakeService) -> None:
    service = make_service()
    service.admission.check_open()
    service.check()
    assert asyncio.run(service.drain(1)) == 0
    with pytest.raises(UnavailableError, match="stopping"):
        service.admission.check_open()


def test_a_replica_that_has_not_started_admits_nothing(tiny: Tiny, embedded_url: str, tmp_path: Path) -> None:
    service = Service(load_settings(base=str(tiny.base_folder), data_dir=tmp_path), embedded_url)
    with pytest.raises(UnavailableError, match="starting"):
        service.admission.check_open()


def test_a_restarted_replica_serves_what_its_disk_holds_while_the_store_is_down(
    tmp_path: Path, make_service: MakeService, deltas: Deltas, dedicated: Dedicated
) -> None:
    with embedded_store(tmp_path / "own") as url:
        Store(url).tasks.publish("spam", deltas.spam)
        Store(url).tasks.publish("topic", deltas.topic)
        first = make_service(url, namespace="default")
        asyncio.run(ask(first, "spam"))
        first.stop()
    second = make_service(url, namespace="default")
    assert is_answer_of(asyncio.run(ask(second, "spam")), deltas.spam, dedicated)
    with pytest.raises(StoreError, match="does not answer"):
        asyncio.run(ask(second, "topic"))


def test_a_replica_goes_on_with_what_it_holds_when_the_store_goes_and_takes_up_changes_when_it_returns(
    tmp_path: Path,
    make_service: MakeService,
    deltas: Deltas,
    dedicated: Dedicated,
    metric: Metric,
    eventually: Callable[..., None],
) -> None:
    with embedded_store(tmp_path / "own") as url:
        Store(url).tasks.publish("spam", deltas.spam)
        service = make_service(url, namespace="default")
        asyncio.run(ask(service, "spam"))
        assert metric(service, "ken_store_up") == 1
    assert is_answer_of(asyncio.run(ask(service, "spam")), deltas.spam, dedicated)
    eventually(lambda: metric(service, "ken_store_up") == 0)
    with embedded_store(tmp_path / "own"):
        Store(url).tasks.publish("spam", deltas.spam_2)
        eventually(lambda: service.table.resolve("spam") == deltas.spam_2.digest)
        assert is_answer_of(asyncio.run(ask(service, "spam")), deltas.spam_2, dedicated)
        eventually(lambda: metric(service, "ken_store_up") == 1)  # once the replica has told the store what it knows
        service.stop()


def test_a_replica_goes_on_with_its_tasks_when_the_store_was_emptied_and_says_so(
    private_url: str,
    make_service: MakeService,
    deltas: Deltas,
    dedicated: Dedicated,
    metric: Metric,
    eventually: Callable[..., None],
) -> None:
    store = Store(private_url)
    store.tasks.publish("spam", deltas.spam)
    service = make_service(private_url, namespace="default")
    asyncio.run(ask(service, "spam"))
    assert metric(service, "ken_store_history_changed") == 0
    connect(private_url).flushall()
    eventually(lambda: metric(service, "ken_store_history_changed") == 1)
    assert is_answer_of(asyncio.run(ask(service, "spam")), deltas.spam, dedicated)
    assert metric(service, "ken_store_up") == 1
    assert not store.replicas.wait(store.tasks.publish("topic", deltas.topic), 20).pending
    assert is_answer_of(asyncio.run(ask(service, "topic")), deltas.topic, dedicated)
    eventually(lambda: keeping(store))
    assert not store.replicas.wait(store.adoptions.add(), 20).pending
    assert metric(service, "ken_store_history_changed") == 0
    with pytest.raises(UnknownTaskError):
        service.table.resolve("spam")


def test_without_store_and_without_a_table_on_disk_a_replica_does_not_start(make_service: MakeService) -> None:
    with pytest.raises(StoreError, match="does not answer"):
        make_service("redis://127.0.0.1:1/0")


def test_a_deleted_task_is_not_served_though_its_delta_is_still_on_the_device(
    service: Service, deltas: Deltas, embedded_url: str, namespace: str
) -> None:
    asyncio.run(ask(service, "spam"))
    store = Store(embedded_url, namespace)
    assert not store.replicas.wait(store.tasks.delete("spam", force=True), 20).pending
    with pytest.raises(UnknownTaskError):
        service.table.resolve("spam")
    with pytest.raises(UnknownTaskError):
        service.table.resolve("spam", digest=deltas.spam.digest)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"base": "/nowhere/at/all"}, "the base cannot be served: .*no such folder"),
        ({"device": "cuda"}, "sees no CUDA device"),
    ],
)
def test_a_replica_that_cannot_have_its_base_or_device_says_so(
    settings: dict[str, str], named: str, make_service: MakeService
) -> None:
    if "device" in settings and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(StartError, match=named):
        make_service(**settings)
