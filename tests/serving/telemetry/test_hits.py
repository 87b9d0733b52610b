"""The tiers that hold a task's deltas on a replica, and the tiers in which requests found them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ken_core import DeltaFile
from serving.errors import StoreError
from serving.service import Service
from serving.telemetry.hits import TIERS, Hits, hit_rate
from tests.tiny_checkpoints import TEXTS, Deltas

Metric = Callable[..., float]


def ask(service: Service, file: DeltaFile, times: int = 1) -> None:
    """Send this number of requests at the same time."""

    async def run() -> None:
        await asyncio.gather(*(service.predict(file.digest, TEXTS[:1], {}, 20) for _ in range(times)))

    asyncio.run(run())


def lookups(metric: Metric, service: Service) -> dict[str, float]:
    """The values that Prometheus reads, by tier, without zeros."""
    found = {tier: metric(service, "ken_cache_hits_total", tier=tier) for tier in TIERS}
    found["store"] = metric(service, "ken_cache_misses_total")
    return {tier: count for tier, count in found.items() if count}


def found(service: Service, *files: DeltaFile) -> dict[str, int]:
    hits = service.engine.tiers.describe([file.digest for file in files]).hits
    return {tier: count for tier, count in hits.items() if count}


# Counting


def test_hits_of_several_digests_add_up_and_name_every_tier() -> None:
    hits = Hits()
    for digest, tier in (("a", "store"), ("a", "packed"), ("b", "packed"), ("c", "disk")):
        hits.note(digest, tier)
    assert hits.of(["a", "b", "a", "unheard-of"]) == dict.fromkeys(TIERS, 0) | {"store": 1, "packed": 2}


def test_the_hit_rate_is_the_share_found_on_the_device() -> None:
    hits = dict.fromkeys(TIERS, 0)
    assert hit_rate(hits) is None
    assert hit_rate(hits | {"materialised": 2, "packed": 1, "host": 1, "disk": 1, "store": 1}) == 0.5


def test_the_digests_asked_for_least_lately_are_forgotten() -> None:
    hits = Hits(most=3)
    for digest in "abcabdaeaf":
        hits.note(digest, "packed")
    assert len(hits) == 3
    assert [sum(hits.of([digest]).values()) for digest in "abcdef"] == [4, 0, 0, 0, 1, 1]


# In a service


def test_the_first_request_finds_its_delta_in_the_store_and_the_next_on_the_device(
    service: Service, deltas: Deltas, metric: Metric
) -> None:
    for _ in range(3):
        ask(service, deltas.spam)
    ask(service, deltas.topic)
    seen = service.engine.tiers.describe([deltas.spam.digest, deltas.emotion.digest])
    assert seen.tiers == {deltas.spam.digest: "packed", deltas.emotion.digest: "store"}
    assert seen.hits == dict.fromkeys(TIERS, 0) | {"store": 1, "packed": 2}
    assert seen.hit_rate == pytest.approx(2 / 3)
    assert lookups(metric, service) == {"store": 2, "packed": 2}


def test_requests_that_wait_for_one_load_all_count_where_it_found_the_delta(
    service: Service, deltas: Deltas, metric: Metric
) -> None:
    ask(service, deltas.spam, times=8)
    assert found(service, deltas.spam) == lookups(metric, service) == {"store": 8}


def test_a_restarted_replica_finds_on_disk_what_it_served_before(
    service: Service, make_service: Callable[..., Service], deltas: Deltas
) -> None:
    ask(service, deltas.spam)
    service.stop()
    restarted = make_service()
    assert restarted.engine.tiers.tier_of(deltas.spam.digest) == "disk"
    ask(restarted, deltas.spam)
    assert found(restarted, deltas.spam) == {"disk": 1}


def test_a_task_that_is_asked_for_often_is_found_materialised(
    make_service: Callable[..., Service],
    publish: Callable[..., None],
    deltas: Deltas,
    eventually: Callable[..., None],
) -> None:
    publish("spam", deltas.spam)
    service = make_service(materialised_bytes=1 << 30)
    for _ in range(5):
        ask(service, deltas.spam)
    eventually(lambda: service.engine.tiers.tier_of(deltas.spam.digest) == "materialised")
    ask(service, deltas.spam)
    assert found(service, deltas.spam)["materialised"] >= 1


def test_a_delta_that_left_the_device_lies_on_disk(
    make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("emotion", deltas.emotion)
    publish("topic", deltas.topic)
    publish("spam", deltas.spam)
    service = make_service(packed_bytes=1)
    for file in (deltas.emotion, deltas.topic, deltas.spam):
        ask(service, file)
    assert service.engine.tiers.tier_of(deltas.emotion.digest) == "disk"
    assert service.engine.tiers.tier_of(deltas.spam.digest) == "packed"


def test_a_request_that_got_no_delta_counts_nowhere(service: Service, metric: Metric, deltas: Deltas) -> None:
    async def run() -> None:
        with pytest.raises(StoreError):
            await service.predict("0" * 64, TEXTS[:1], {}, 20)

    asyncio.run(run())
    assert lookups(metric, service) == {}
