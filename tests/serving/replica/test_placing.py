"""Replicas that share tasks through a real store: each loads what is placed on it before it is asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.errors import ForeignPlacementError
from serving.service import Service
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas

TASKS = ("emotion", "topic", "spam", "spam-2", "spam-3")
ON_DEVICE = ("packed", "materialised")

Ask = Callable[..., httpx.Response]
Eventually = Callable[..., None]
Metric = Callable[..., float]


@pytest.fixture
def make(make_service: Callable[..., Service], tmp_path: Path) -> Callable[..., Service]:
    """A replica that makes placements often, with a disk of its own."""
    made: list[Service] = []

    def run(*url: str, **settings: Any) -> Service:
        own = {"placement_seconds": 0.2, "data_dir": tmp_path / f"replica-{len(made)}"}
        made.append(make_service(*url, **own | settings))
        return made[-1]

    return run


@pytest.fixture
def tasks(publish: Callable[..., None], deltas: Deltas) -> dict[str, str]:
    """The digests of five tasks, by name."""
    found = {}
    for task in TASKS:
        file = getattr(deltas, task.replace("-", "_"))
        publish(task, file)
        found[task] = file.digest
    return found


@pytest.fixture
def ask(talk: Callable[..., Any]) -> Ask:
    def run(service: Service, task: str) -> httpx.Response:
        async def conversation(client: httpx.AsyncClient) -> httpx.Response:
            answer = await client.post(f"/v1/tasks/{task}/predict", json={"inputs": "rain"})
            assert answer.status_code == 200, answer.text
            return answer

        return talk(service, conversation)

    return run


def shared(*services: Service) -> bool:
    """Whether all follow one placement on all of them, and have loaded what it puts on them."""
    names = tuple(sorted(service.replica for service in services))
    placements = [service.placing.current for service in services]
    return all(
        placement is not None and placement.replicas == names and placement.epoch == service.placing.seen
        for service, placement in zip(services, placements, strict=True)
    )


def holds(service: Service, *digests: str) -> bool:
    return all(service.engine.tiers.tier_of(digest) in ON_DEVICE for digest in digests)


def test_one_replica_alone_is_the_home_of_every_task(
    make: Callable[..., Service], tasks: dict[str, str], ask: Ask, metric: Metric
) -> None:
    service = make()
    assert service.placing.enforced
    for task in tasks:
        assert ask(service, task).headers["X-Ken-Replica"] == service.replica
    assert metric(service, "ken_placed_requests_total", where="home") == len(tasks)
    assert metric(service, "ken_placed_requests_total") == len(tasks)
    assert metric(service, "ken_placement_enforced") == 1


def test_tasks_of_a_replica_that_ends_are_on_the_device_of_the_other_one_before_they_are_asked_for(
    make: Callable[..., Service],
    tasks: dict[str, str],
    ask: Ask,
    eventually: Eventually,
    metric: Metric,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = make(), make()
    eventually(lambda: shared(one, two))
    placement = one.placing.current
    assert placement is not None
    for task in tasks:
        home = one if placement.rank(task, one.replica) == 0 else two
        ask(home, task)
        assert metric(home, "ken_placed_requests_total", where="home") > 0
    eventually(lambda: shared(one, two) and holds(one, *tasks.values()) and holds(two, *tasks.values()))
    loads = metric(two, "ken_load_seconds_count")
    assert loads == len(tasks)
    monkeypatch.setattr("serving.placement.leading.LOST_SECONDS", 0.0)  # `two` has never seen the one that ends
    assert asyncio.run(one.drain(5)) == 0
    one.stop()
    eventually(lambda: shared(two))
    for task in tasks:
        ask(two, task)
    assert metric(two, "ken_load_seconds_count") == loads
    assert set(store.placements.loads()) == {two.replica}


def test_requests_at_a_second_home_are_counted_as_such(
    make: Callable[..., Service], tasks: dict[str, str], ask: Ask, eventually: Eventually, metric: Metric
) -> None:
    one, two = make(), make()
    eventually(lambda: shared(one, two))
    placement = one.placing.current
    assert placement is not None
    second = two if placement.rank("spam", one.replica) == 0 else one
    ask(second, "spam")
    assert metric(second, "ken_placed_requests_total", where="second") == 1
    assert metric(second, "ken_placed_requests_total") == 1


def test_where_no_proxy_routes_by_the_placement_replicas_say_so(
    make: Callable[..., Service], tasks: dict[str, str], eventually: Eventually, store: Store
) -> None:
    one, two = make(), make()
    eventually(lambda: shared(one, two))
    assert not one.placing.enforced
    assert "no proxy" in str(one.placing.not_enforced)
    store.placements.report_proxy("node", 0, "the socket does not answer")
    store.placements.report_proxy("other", 3)  # hides no other's trouble
    eventually(lambda: one.placing.not_enforced == "node: the socket does not answer")
    store.placements.report_proxy("node", 0)
    eventually(lambda: "node: it has read no placement yet" in str(one.placing.not_enforced))
    store.placements.report_proxy("node", 3)
    eventually(lambda: one.placing.enforced and two.placing.enforced)


def test_a_replica_that_is_back_has_its_name_and_its_tasks_before_it_takes_requests(
    make: Callable[..., Service], tasks: dict[str, str], ask: Ask, eventually: Eventually, metric: Metric
) -> None:
    before = make()
    for task in tasks:
        ask(before, task)
    eventually(lambda: all(homes.rate for homes in before.placing.current.tasks.values()))  # type: ignore[union-attr]
    before.stop()
    after = make()
    assert after.replica == before.replica
    assert holds(after, *tasks.values())
    assert metric(after, "ken_cache_misses_total") == metric(after, "ken_cache_hits_total") == 0


def test_a_new_version_is_loaded_where_its_task_is_placed(
    make: Callable[..., Service],
    tasks: dict[str, str],
    ask: Ask,
    eventually: Eventually,
    publish: Callable[..., None],
    deltas: Deltas,
    store: Store,
) -> None:
    publish("news", deltas.spam)
    service = make()
    ask(service, "news")
    eventually(lambda: service.placing.current.tasks["news"].rate > 0)  # type: ignore[union-attr]
    publish("news", deltas.spam_3)
    eventually(lambda: holds(service, deltas.spam_3.digest))


def test_tasks_that_nobody_asks_for_are_not_loaded(
    make: Callable[..., Service], tasks: dict[str, str], ask: Ask, eventually: Eventually
) -> None:
    service = make()
    ask(service, "spam")
    eventually(lambda: shared(service) and service.placing.current.tasks["spam"].rate > 0)  # type: ignore[union-attr]
    assert holds(service, tasks["spam"])
    assert not any(holds(service, digest) for task, digest in tasks.items() if task != "spam")


def test_what_does_not_fit_on_the_device_is_fetched_to_the_disk(
    make: Callable[..., Service], tasks: dict[str, str], ask: Ask, eventually: Eventually
) -> None:
    before = make()
    for task in tasks:
        ask(before, task)
    eventually(lambda: all(homes.rate for homes in before.placing.current.tasks.values()))  # type: ignore[union-attr]
    most = max(loaded.nbytes for loaded in before.engine.tiers.held())
    before.stop()
    after = make(packed_bytes=int(2.5 * most))
    found = [after.engine.tiers.tier_of(digest) for digest in tasks.values()]
    assert found.count("packed") >= 1
    assert found.count("disk") >= 1
    assert set(found) == {"packed", "disk"}


def test_a_task_that_cannot_be_loaded_does_not_keep_a_replica_from_starting(
    make: Callable[..., Service],
    tasks: dict[str, str],
    ask: Ask,
    eventually: Eventually,
    embedded_url: str,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = make()
    for task in tasks:
        ask(before, task)
    eventually(lambda: all(homes.rate for homes in before.placing.current.tasks.values()))  # type: ignore[union-attr]
    before.stop()
    connect(embedded_url).delete(*connect(embedded_url).keys(f"ken:{namespace}:blob:{{{tasks['spam']}}}:*"))
    after = make()
    assert after.placing.seen == after.placing.current.epoch  # type: ignore[union-attr]
    assert holds(after, *(digest for task, digest in tasks.items() if task != "spam"))
    assert len([one for one in caplog.records if "task spam, placed" in one.getMessage()]) == 1


def test_replicas_that_are_cut_off_from_the_store_keep_answering_by_the_placement_they_know(
    make: Callable[..., Service], deltas: Deltas, ask: Ask, eventually: Eventually, metric: Metric, tmp_path: Path
) -> None:
    with embedded_store(tmp_path / "own") as url:
        Store(url, "own").tasks.publish("spam", deltas.spam)
        service = make(url, namespace="own")
        ask(service, "spam")
    eventually(lambda: service.placing.trouble is not None)
    ask(service, "spam")
    assert metric(service, "ken_placed_requests_total", where="home") == 2


def test_a_store_that_lost_the_placement_gets_it_again(
    make: Callable[..., Service],
    tasks: dict[str, str],
    eventually: Eventually,
    store: Store,
    embedded_url: str,
    namespace: str,
) -> None:
    service = make()
    assert service.placing.current is not None
    connect(embedded_url).delete(f"ken:{{{namespace}}}:placement")
    eventually(lambda: store.placements.read() == service.placing.current)


@pytest.mark.parametrize("epoch", ["foreign", "0", "999999"])
def test_what_is_no_placement_is_replaced_by_the_replica_that_computes_it(
    make: Callable[..., Service],
    tasks: dict[str, str],
    eventually: Eventually,
    store: Store,
    embedded_url: str,
    namespace: str,
    epoch: str,
) -> None:
    def replaced() -> bool:
        try:
            return store.placements.read() == service.placing.current
        except ForeignPlacementError:
            return False

    service = make()
    key = f"ken:{{{namespace}}}:placement"
    assert service.placing.current is not None
    connect(embedded_url).hset(key, mapping={"epoch": epoch, "body": b"foreign"})
    eventually(replaced)
    connect(embedded_url).set(key, "something else")
    eventually(replaced)


def test_without_placement_no_task_is_loaded_beforehand_and_the_placement_is_taken_back(
    make: Callable[..., Service], tasks: dict[str, str], ask: Ask, eventually: Eventually, store: Store, metric: Metric
) -> None:
    before = make()
    for task in tasks:
        ask(before, task)
    eventually(lambda: all(homes.rate for homes in before.placing.current.tasks.values()))  # type: ignore[union-attr]
    before.stop()
    after = make(placement="off")
    eventually(lambda: (found := store.placements.read()) is not None and not found.replicas)
    ask(after, "spam")
    assert metric(after, "ken_placed_requests_total") == 0
    assert metric(after, "ken_placement_epoch") == 0
    assert not holds(after, tasks["topic"])
    assert set(store.placements.loads()) == {after.replica}


def test_replicas_are_shown_with_their_load(
    make: Callable[..., Service], tasks: dict[str, str], ask: Ask, eventually: Eventually, talk: Callable[..., Any]
) -> None:
    service = make()
    ask(service, "spam")

    def shown() -> dict[str, Any]:
        async def conversation(client: httpx.AsyncClient) -> Any:
            return (await client.get("/v1/replicas")).json()

        (found,) = talk(service, conversation)
        return found

    eventually(lambda: (found := shown())["ready"] and found["held_tasks"] == 1 and found["seen"] > 0)
    assert shown()["name"] == service.replica
    eventually(lambda: shown()["in_flight"] == 0)  # a report that is made meanwhile counts this request too


def test_a_load_that_fails_in_a_way_nobody_thought_of_keeps_no_other_task_from_being_loaded(
    make: Callable[..., Service],
    tasks: dict[str, str],
    ask: Ask,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = make()
    preload, broken = service.engine.tiers.preload, tasks["spam"]

    async def fails(digest: str) -> int:
        if digest == broken:
            raise RuntimeError("out of memory")
        return await preload(digest)

    monkeypatch.setattr(service.engine.tiers, "preload", fails)
    for task in tasks:
        ask(service, task)
    eventually(lambda: service.placing.current is not None and service.placing.current.tasks["spam"].rate > 0)
    eventually(lambda: service.placing.seen == service.placing.current.epoch)


def test_a_name_that_a_replica_elsewhere_has_is_not_taken(make: Callable[..., Service], store: Store) -> None:
    """As of two machines with one name: neither sees the other's processes."""
    service = make()
    connect_key = store.connection.control_key("reports")
    report = store.connection.client.hget(connect_key, service.replica)
    service.stop()
    assert not store.replicas.is_elsewhere(service.replica)
    when, text = report.split(b" ", 1)
    later = b"%f %s" % (float(when) + 60, text.replace(b"pid:[", b"pid:[9"))  # in touch, however long a start takes
    store.connection.client.hset(connect_key, service.replica, later)
    assert store.replicas.is_elsewhere(service.replica)
    other = make()
    assert other.replica != service.replica
    assert other.replica.rpartition("-")[0] == service.replica.rpartition("-")[0]
