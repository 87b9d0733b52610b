"""The store under several processes at once: readers, publishers and `gc` against each other."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from ken_core import DeltaFile
from serving.routing.routes import Route
from serving.store import Store, Table
from serving.store.urls import connect
from serving.tasks import TaskTable
from tests.tiny_checkpoints import Deltas

FORK = multiprocessing.get_context("fork")
"""The children touch no torch, only Redis and files."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.store.deltas.CHUNK_BYTES", 1000)


@pytest.fixture
def make_file(tmp_path: Path, deltas: Deltas) -> Callable[[int], DeltaFile]:
    """Files that differ; the store does not look inside them."""

    def make(seed: int) -> DeltaFile:
        path = tmp_path / f"{seed}.ken"
        path.write_bytes(random.Random(seed).randbytes(500 + seed * 37 % 4000))
        data = path.read_bytes()
        return DeltaFile(path, deltas.spam.manifest, len(data), hashlib.sha256(data).hexdigest())

    return make


@contextmanager
def beside(*works: Callable[[], None]) -> Iterator[list[BaseProcess]]:
    """Run works in processes of their own; all must end well."""
    children = [FORK.Process(target=work) for work in works]
    for child in children:
        child.start()
    try:
        yield children
    finally:
        for child in children:
            child.join(60)
            child.kill()
    assert [child.exitcode for child in children] == [0] * len(children)


def test_a_reader_sees_only_whole_versions_while_200_are_published(
    store: Store,
    store_url: str,
    namespace: str,
    make_file: Callable[[int], DeltaFile],
    tmp_path: Path,
    eventually: Callable[..., None],
) -> None:
    files = [make_file(i) for i in range(200)]
    store.tasks.publish("spam", files[0])
    reading, published = FORK.Event(), FORK.Event()
    seen = FORK.Value("i", 0)
    ever = {f.digest for f in files}

    def read() -> None:
        own = Store(store_url, namespace)
        digests = set()
        while True:
            last = published.is_set()
            task = own.tasks.table().tasks["spam"]
            assert task.aliases["live"] in task.versions
            assert task.aliases["live"] in ever
            path = tmp_path / f"read-{os.getpid()}"
            own.deltas.fetch(task.aliases["live"], path)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == task.aliases["live"]
            digests.add(task.aliases["live"])
            seen.value = len(digests)
            reading.set()
            if last:
                assert task.aliases["live"] == files[-1].digest
                return

    with beside(read):
        assert reading.wait(20)
        for number, file in enumerate(files[1:], 1):
            store.tasks.publish("spam", file)
            if number <= 2:  # three are read, and as many more as the reader comes to
                eventually(lambda least=number: seen.value > least)
        published.set()
    assert seen.value > 2


def test_a_reader_resolves_by_whole_routes_only_while_they_and_the_versions_they_name_come_and_go(
    store: Store,
    store_url: str,
    namespace: str,
    make_file: Callable[[int], DeltaFile],
    tmp_path: Path,
    eventually: Callable[..., None],
) -> None:
    live, canary = make_file(1), make_file(2)
    store.tasks.publish("spam", live)
    store.deltas.put(canary)
    routes = [Route({"live": 90, "canary": 10}), Route({"canary": 1, canary.digest: 1}), Route({live.digest: 1})]
    whole = [None, *routes, Route({"live": 90})]  # the last is what a deletion leaves of the first
    reading, done = FORK.Event(), FORK.Event()
    seen = FORK.Value("i", 0)

    def read() -> None:
        own, table = Store(store_url, namespace), TaskTable(tmp_path / "table.json")
        met = set()
        while not done.is_set():
            one = own.tasks.get("spam")
            assert one is not None
            for task in (one, own.tasks.table().tasks["spam"]):
                assert task.route in whole
                met.add(whole.index(task.route))
                table.replace(Table(task.revision, {"spam": task}))
                for key in ("ada", "bob", None):
                    assert table.resolve("spam", key=key) in task.versions
            seen.value = len(met)
            reading.set()

    with beside(read):
        try:
            assert reading.wait(20)
            for i in range(90):
                store.tasks.publish_digest("spam", canary.digest, alias="canary")
                store.tasks.set_route("spam", routes[i % 3])
                if i < 2:
                    eventually(lambda least=i + 1: seen.value > least)
                store.tasks.delete_version("spam", canary.digest, force=True)
        finally:
            done.set()
    assert seen.value > 2


def test_routes_set_from_several_processes_are_all_kept_for_rollback(
    store: Store, store_url: str, namespace: str, make_file: Callable[[int], DeltaFile]
) -> None:
    store.tasks.publish("spam", make_file(1))

    def router(mine: int) -> Callable[[], None]:
        def work() -> None:
            own = Store(store_url, namespace)
            for i in range(20):
                own.tasks.set_route("spam", Route({"live": mine * 20 + i + 1}))

        return work

    with beside(router(0), router(1)):
        pass
    met = []
    for _ in range(40):
        task = store.tasks.get("spam")
        assert task is not None
        assert task.route is not None
        met.append(task.route.weights["live"])
        store.tasks.rollback_route("spam")
    assert sorted(met) == list(range(1, 41))


def test_publishers_in_several_processes_lose_no_revision(
    store: Store, store_url: str, namespace: str, make_file: Callable[[int], DeltaFile]
) -> None:
    files = [make_file(i) for i in range(60)]
    revisions = FORK.SimpleQueue()

    def publisher(mine: list[DeltaFile]) -> Callable[[], None]:
        def work() -> None:
            own = Store(store_url, namespace)
            for i, file in enumerate(mine):
                revisions.put(own.tasks.publish("shared" if i % 2 else f"own-{mine[0].digest[:8]}", file))

        return work

    with beside(*(publisher(files[i::4]) for i in range(4))):
        told = [revisions.get() for _ in files]
    assert sorted(told) == list(range(1, 61))
    table = store.tasks.table()
    assert table.revision == 60
    assert {d for t in table.tasks.values() for d in t.versions} == {f.digest for f in files}
    logged = [h["revision"] for task in table.tasks for h in store.history.of(task, 100)]
    assert sorted(logged) == list(range(1, 61))
    assert [e.revision for e in store.events.after("0", 0.1)] == list(range(1, 61))


def test_publishers_of_one_delta_at_once_all_succeed(
    store: Store, store_url: str, namespace: str, deltas: Deltas, tmp_path: Path
) -> None:
    def publisher(name: str) -> Callable[[], None]:
        return lambda: drop(Store(store_url, namespace).tasks.publish(name, deltas.spam))

    with beside(*(publisher(f"task-{i}") for i in range(4))):
        pass
    assert {t.aliases["live"] for t in store.tasks.table().tasks.values()} == {deltas.spam.digest}
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")


def drop(value: object) -> None:
    """A process's target returns nothing."""


def test_gc_beside_publishers_never_loses_a_published_delta(
    store: Store,
    store_url: str,
    namespace: str,
    make_file: Callable[[int], DeltaFile],
    tmp_path: Path,
    eventually: Callable[[Callable[[], Any]], None],
) -> None:
    """Every file is published, becomes garbage and is published again, while two collectors run.

    The first stays garbage until it is collected; for the others it is up to chance.
    """
    files = [make_file(i) for i in range(30)]
    stop: Event = FORK.Event()
    collected = FORK.Value("i", 0)

    def collect() -> None:
        own = Store(store_url, namespace)
        while not stop.is_set():
            count = own.garbage.collect().deltas
            with collected.get_lock():
                collected.value += count

    with beside(collect, collect):
        try:
            for i, file in enumerate(files):
                store.tasks.publish("passing", file)
                store.tasks.delete("passing", force=True)
                if i == 0:
                    eventually(lambda: collected.value > 0)
                store.tasks.publish(f"kept-{i}", file)
        finally:
            stop.set()
    for i, file in enumerate(files):
        assert store.tasks.get(f"kept-{i}") is not None
        store.deltas.fetch(file.digest, tmp_path / "fetched")


def test_an_upload_killed_halfway_is_held_until_its_lease_ends_and_then_collected(
    store: Store, store_url: str, namespace: str, deltas: Deltas
) -> None:
    started = FORK.Event()

    def upload() -> None:
        def linger(size: int) -> None:
            started.set()
            signal.pause()

        Store(store_url, namespace).deltas.put(deltas.spam, linger)

    child = FORK.Process(target=upload)
    child.start()
    assert started.wait(20)
    child.kill()
    child.join()
    raw: Any = connect(store_url)
    blobs = f"ken:{namespace}:blob:*"
    store.garbage.collect()
    assert list(raw.scan_iter(blobs))
    assert not store.deltas.has(deltas.spam.digest)
    raw.delete(f"ken:{{{namespace}}}:upload:{deltas.spam.digest}")
    store.garbage.collect()
    assert not list(raw.scan_iter(blobs))


def test_what_a_dead_uploader_left_is_collected_once_its_lease_has_ended(
    store: Store, deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.store.leases.LEASE_SECONDS", 0)
    collected: list[int] = []
    store.deltas.put(deltas.spam, lambda size: collected.append(store.garbage.collect().deltas))
    assert any(collected)


def test_an_upload_that_takes_longer_than_a_lease_is_not_collected_under_its_hands(
    store: Store, deltas: Deltas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.store.leases.LEASE_SECONDS", 2)
    monkeypatch.setattr("serving.store.deltas.INCOMPLETE_SECONDS", 2)
    monkeypatch.setattr("serving.store.deltas.CHUNK_BYTES", 20_000)

    def slow_line(size: int) -> None:
        time.sleep(0.8)
        store.garbage.collect()

    store.deltas.put(deltas.spam, slow_line)
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")
