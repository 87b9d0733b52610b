"""Merges on a replica: made once, held in a few places, dropped from the tiers, and made again."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from holding import Blocked, until

from ken_core import MergeRecipe
from serving.errors import DeadlineError, ForbiddenError, OverloadedError, UnavailableError, UnmergeableError
from serving.replica.inference import Prediction
from serving.routing.merges import Merge, MergePart
from serving.service import Service
from serving.store import Store
from serving.store.urls import connect
from serving.tiers.merges import Merges
from tests.tiny_checkpoints import TEXTS, Deltas, scores

MakeService = Callable[..., Service]
Metric = Callable[..., float]
Publish = Callable[..., None]
LINEAR = MergeRecipe()


def merge_of(deltas: Deltas, weight: float, recipe: MergeRecipe = LINEAR) -> Merge:
    """`spam` and `weight` times `topic`."""
    parts = (MergePart(deltas.spam.digest, 1.0), MergePart(deltas.topic.digest, weight))
    return Merge(tuple(sorted(parts, key=lambda part: part.digest)), deltas.spam.digest, recipe)


async def ask(service: Service, merge: Merge, client: str = "ana") -> Prediction:
    return await service.predict(merge.digest, TEXTS, {}, 20, client=client, merge=merge)


def made(service: Service, metric: Metric) -> float:
    return metric(service, "ken_load_seconds_count", tier="merge")


def near(one: Prediction, other: Prediction) -> bool:
    pairs = zip(one.outputs, other.outputs, strict=True)
    return all(abs(scores(a)[label] - scores(b)[label]) < 1e-5 for a, b in pairs for label in ("ham", "spam"))


def test_a_merge_that_many_ask_for_at_once_is_made_once(service: Service, deltas: Deltas, metric: Metric) -> None:
    async def together() -> list[Prediction]:
        return await asyncio.gather(*(ask(service, merge_of(deltas, 0.5)) for _ in range(16)))

    first, *others = asyncio.run(together())
    assert all(near(first, other) for other in others)
    assert made(service, metric) == 1


@pytest.mark.parametrize("mixed", ["auto", "off"])
def test_a_merge_that_left_the_device_is_made_again(
    mixed: str, make_service: MakeService, publish: Publish, deltas: Deltas, metric: Metric
) -> None:
    for task in ("emotion", "topic", "spam"):
        publish(task, getattr(deltas, task))
    service = make_service(mixed=mixed, packed_bytes=1)
    before = asyncio.run(ask(service, merge_of(deltas, 0.5)))
    asyncio.run(service.predict(deltas.emotion.digest, TEXTS, {}, 20))
    asyncio.run(service.predict(deltas.topic.digest, TEXTS, {}, 20))
    assert service.engine.tiers.tier_of(merge_of(deltas, 0.5).digest) == "store"
    assert near(asyncio.run(ask(service, merge_of(deltas, 0.5))), before)
    assert made(service, metric) == 2


@pytest.mark.parametrize("mixed", ["auto", "off"])
def test_a_merge_that_lost_its_place_leaves_every_tier(
    mixed: str, make_service: MakeService, publish: Publish, deltas: Deltas, metric: Metric
) -> None:
    for task in ("topic", "spam"):
        publish(task, getattr(deltas, task))
    service = make_service(mixed=mixed, max_merges=2)
    merges = [merge_of(deltas, weight) for weight in (0.1, 0.2, 0.3, 0.4)]
    for merge in merges:
        asyncio.run(ask(service, merge))
    there = {loaded.digest for loaded in service.engine.tiers.held()}
    assert there & {merge.digest for merge in merges} == {merge.digest for merge in merges[2:]}
    assert len(service.cache.merges) == 2
    assert service.engine.verify().result(20) == []
    before = made(service, metric)
    asyncio.run(ask(service, merges[2]))
    asyncio.run(ask(service, merges[0]))
    assert made(service, metric) == before + 1


def test_a_merge_in_use_keeps_its_place_and_further_ones_wait(
    make_service: MakeService, publish: Publish, deltas: Deltas
) -> None:
    for task in ("topic", "spam"):
        publish(task, getattr(deltas, task))
    service = make_service(max_merges=1)
    asyncio.run(ask(service, merge_of(deltas, 0.5)))

    async def conversation() -> Prediction:
        with Blocked(service.engine):
            running = asyncio.create_task(ask(service, merge_of(deltas, 0.5)))
            await until(lambda: service.engine.waiting > 0)
            with pytest.raises(OverloadedError, match="KEN_MAX_MERGES") as refused:
                await ask(service, merge_of(deltas, 0.25))
            assert refused.value.retry_after
        await running
        return await ask(service, merge_of(deltas, 0.25))

    assert asyncio.run(conversation()).outputs


def test_other_tasks_are_loaded_while_a_merge_waits_to_be_made(
    make_service: MakeService, publish: Publish, deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that makes merges is no thread that loads deltas."""
    for task in ("emotion", "topic", "spam"):
        publish(task, getattr(deltas, task))
    service = make_service()

    async def conversation() -> None:
        go, load = threading.Event(), service.cache.files.open

        def slow(digest: str) -> Any:
            assert digest == deltas.emotion.digest or go.wait(20)
            return load(digest)

        monkeypatch.setattr(service.cache.files, "open", slow)
        making = [asyncio.create_task(ask(service, merge_of(deltas, weight))) for weight in (0.1, 0.2, 0.3)]
        await until(lambda: len(service.cache.merges) == 3)
        await service.predict(deltas.emotion.digest, TEXTS, {}, 20)
        assert not any(one.done() for one in making)
        go.set()
        await asyncio.gather(*making)

    asyncio.run(conversation())


def test_the_next_merge_waits_while_the_thread_rests_and_a_stop_does_not(service: Service, deltas: Deltas) -> None:
    asyncio.run(ask(service, merge_of(deltas, 0.5)))
    assert service.engine.tiers._next_merge > 0
    service.engine.tiers._next_merge = time.monotonic() + 3600
    merge = merge_of(deltas, 0.25)
    with pytest.raises(DeadlineError):
        asyncio.run(service.predict(merge.digest, TEXTS, {}, 0.2, client="ana", merge=merge))
    asyncio.run(ask(service, merge_of(deltas, 0.5)))  # it is there already
    service.stop()
    assert {loaded.digest for loaded in service.engine.tiers.held()} == {merge_of(deltas, 0.5).digest}


def test_parts_on_the_disk_are_merged_though_the_store_has_lost_them(
    make_service: MakeService, deltas: Deltas, private_url: str
) -> None:
    service = make_service(private_url)
    for task in ("topic", "spam"):
        Store(private_url, service.settings.namespace).tasks.publish(task, getattr(deltas, task))
    for task in ("topic", "spam"):
        asyncio.run(service.predict(getattr(deltas, task).digest, TEXTS, {}, 20))
    connect(private_url).flushall()
    assert asyncio.run(ask(service, merge_of(deltas, 0.5))).outputs
    shutil.rmtree(service.cache.files.folder)
    with pytest.raises(UnavailableError, match=rf"does not hold delta ({deltas.spam.digest}|{deltas.topic.digest})"):
        asyncio.run(ask(service, merge_of(deltas, 0.25)))


def test_what_cannot_be_merged_is_remembered(service: Service, deltas: Deltas) -> None:
    nothing = replace(merge_of(deltas, 0.0), parts=(MergePart(deltas.spam.digest, 0.0),))
    for _ in range(2):
        with pytest.raises(UnmergeableError, match="all weights are 0"):
            asyncio.run(ask(service, nothing))
    for client in range(30):
        with pytest.raises(UnmergeableError):
            asyncio.run(ask(service, nothing, str(client)))
    assert len(service.cache.merges) == 1


def test_no_merge_has_a_place_where_none_may_be_made(deltas: Deltas) -> None:
    with pytest.raises(ForbiddenError, match="KEN_MAX_MERGES is 0"):
        Merges(0).hold(merge_of(deltas, 1.0), "ana", here=False)


def test_a_refused_request_takes_no_place_from_another_merge(deltas: Deltas) -> None:
    merges = Merges(1, per_minute=1, clock=lambda: 0.0)
    first, second = merge_of(deltas, 1.0), merge_of(deltas, 2.0)
    merges.hold(first, "ana", here=False)
    merges.release(first.digest)
    with pytest.raises(OverloadedError, match="KEN_MERGES_PER_MINUTE"):
        merges.hold(second, "ana", here=False)
    assert merges.find(first.digest) == first
    assert not merges.leaving()
    merges.hold(second, "bob", here=False)
    assert merges.find(first.digest) is None
    assert merges.leaving() == {first.digest}


def test_a_merge_that_comes_back_in_time_does_not_leave(deltas: Deltas) -> None:
    merges = Merges(1, per_minute=60)
    for weight in (1.0, 2.0, 1.0):
        merges.hold(merge_of(deltas, weight), "ana", here=True)
        merges.release(merge_of(deltas, weight).digest)
    assert merges.leaving() == {merge_of(deltas, 2.0).digest}
