"""A watch whose store was emptied, restored or exchanged: what stays, what is taken over, and what is said."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from histories import keeping
from watching import Watching

from serving.errors import StoreError
from serving.store import Event, Store
from serving.store.embedded import embedded_store
from serving.store.urls import connect
from serving.tasks import TaskTable
from tests.tiny_checkpoints import Deltas

Eventually = Callable[..., None]


def test_a_watch_keeps_what_it_knew_of_a_store_that_was_emptied(
    private_url: str, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually, tmp_path: Path
) -> None:
    store = Store(private_url)
    store.tasks.publish("spam", deltas.spam)
    revision = store.tasks.publish("topic", deltas.topic)
    watching = watch(store)
    connect(private_url).flushall()
    eventually(lambda: keeping(store) == {"replica-1"})
    assert watching.watch.other_history
    assert watching.table.resolve("spam") == deltas.spam.digest
    assert watching.watch.store_up
    assert "ken adopt-store" in str(watching.watch.trouble)
    assert watching.watch.notice == "other-history"
    on_disk = TaskTable(tmp_path / "tasks-0.json")
    assert on_disk.load_from_disk()
    assert on_disk.current == watching.table.current
    assert on_disk.current.revision == revision

    assert not store.replicas.wait(store.tasks.publish("spam", deltas.spam_2), 20).pending
    assert watching.table.resolve("spam") == deltas.spam_2.digest
    assert watching.table.resolve("topic") == deltas.topic.digest

    assert not store.replicas.wait(store.adoptions.add(), 20).pending
    assert watching.table.current == store.tasks.table()
    assert set(watching.table.current.tasks) == {"spam"}
    assert not watching.watch.other_history
    assert watching.watch.trouble is None
    assert watching.watch.notice == ""


def test_a_change_in_a_store_that_was_emptied_is_not_seen_before_it_is_taken_over(
    private_url: str, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    """Though its revision is far below the one that the replica knew."""
    store = Store(private_url)
    for _ in range(3):
        store.tasks.publish("spam", deltas.spam)
    watching = watch(store)
    told = len(watching.told)
    connect(private_url).flushall()
    eventually(lambda: len(watching.told) > told)
    assert watching.watch.other_history
    watching.hold.clear()
    store.tasks.publish("first", deltas.spam)
    eventually(lambda: "first" in watching.table.current.tasks)
    assert store.replicas.wait(store.tasks.publish("second", deltas.topic), 0.2).pending == ("replica-1",)


def test_a_watch_that_starts_beside_a_store_that_was_emptied_keeps_what_the_disk_knew(
    private_url: str, deltas: Deltas, watch: Callable[..., Watching], tmp_path: Path
) -> None:
    store = Store(private_url)
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("topic", deltas.topic)
    TaskTable(tmp_path / "tasks-0.json").replace(store.tasks.table())
    connect(private_url).flushall()
    store.tasks.publish("topic", deltas.spam, allow_other_labels=True)
    watching = watch(store)
    assert watching.watch.other_history
    assert watching.table.resolve("spam") == deltas.spam.digest
    assert watching.table.resolve("topic") == deltas.spam.digest


@pytest.mark.parametrize("later", [0, 1, 2], ids=["fewer", "as-many", "more"])
def test_a_restored_backup_does_not_bring_back_old_versions_however_many_changes_follow(
    tmp_path: Path, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually, later: int
) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    with embedded_store(data) as url:
        store = Store(url)
        store.tasks.publish("spam", deltas.spam)
        store.tasks.publish("topic", deltas.topic)
    shutil.copytree(data, backup)
    with embedded_store(data):
        store.tasks.publish("spam", deltas.spam_2)
        watching = watch(Store(url))
    eventually(lambda: not watching.watch.store_up)
    shutil.rmtree(data)
    backup.rename(data)
    with embedded_store(data) as again:
        assert again == url
        for _ in range(later):
            revision = store.tasks.publish("fresh", deltas.topic)
        eventually(lambda: keeping(store) == {"replica-1"})
        assert watching.table.resolve("spam") == deltas.spam_2.digest
        if later:
            assert not store.replicas.wait(revision, 20).pending
            assert watching.table.resolve("fresh") == deltas.topic.digest
        assert not store.replicas.wait(store.adoptions.add(), 20).pending
        assert watching.table.resolve("spam") == deltas.spam.digest
        watching.watch.stop()


def test_a_key_that_is_revoked_in_a_store_that_was_emptied_is_gone(
    private_url: str, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    store = Store(private_url)
    store.keys.put("one", {"name": "ada"})
    watching = watch(store)
    connect(private_url).flushall()
    eventually(lambda: watching.watch.other_history)
    store.keys.put("two", {"name": "bob"})
    assert not store.replicas.wait(store.keys.put("three", {"name": "cy"}), 20).pending
    assert set(watching.table.current.keys) == {"one", "two", "three"}
    assert not store.replicas.wait(store.keys.drop("two"), 20).pending
    assert set(watching.table.current.keys) == {"one", "three"}


def test_a_key_that_was_revoked_while_nobody_looked_is_gone(
    private_url: str,
    watch: Callable[..., Watching],
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store(private_url)
    store.keys.put("one", {"name": "ada"})
    watching = watch(store)
    connect(private_url).flushall()
    eventually(lambda: watching.watch.other_history)
    store.keys.put("two", {"name": "bob"})
    eventually(lambda: "two" in watching.table.current.keys)
    waits, goes_on = threading.Event(), threading.Event()

    def lost(id: str, block_seconds: float) -> list[Event]:
        waits.set()
        goes_on.wait(20)
        raise StoreError("the store does not answer")

    monkeypatch.setattr(store.events, "after", lost)
    assert waits.wait(20)
    dropped = store.keys.drop("two")
    goes_on.set()
    assert not store.replicas.wait(dropped, 20).pending
    assert set(watching.table.current.keys) == {"one"}


def test_that_the_store_has_another_history_is_known_after_a_restart(
    private_url: str, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually, tmp_path: Path
) -> None:
    store = Store(private_url)
    store.tasks.publish("spam", deltas.spam)
    watching = watch(store)
    connect(private_url).flushall()
    eventually(lambda: watching.watch.other_history)
    watching.watch.stop()
    on_disk = TaskTable(tmp_path / "tasks-0.json")
    assert on_disk.load_from_disk()
    assert on_disk.other_history


def test_a_store_that_came_back_empty_is_locked_again_by_who_knew_its_keys(
    private_url: str, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    store = Store(private_url)
    store.keys.put("one", {"name": "ada"})
    watch(store)
    connect(private_url).flushall()
    eventually(store.keys.locked)
    assert store.keys.all() == {}
    newcomer = watch(store, replica="newcomer")
    assert newcomer.table.locked
    assert newcomer.table.current.keys == {}


def test_with_keys_on_disk_and_the_store_empty_at_the_start_both_are_locked(
    store: Store, watch: Callable[..., Watching], tmp_path: Path
) -> None:
    (tmp_path / "tasks-0.json").write_bytes(orjson.dumps({"revision": 7, "tasks": {}, "keys": {"one": {"name": "a"}}}))
    watching = watch(store)
    assert watching.table.current.keys == {"one": {"name": "a"}}
    assert watching.table.locked
    assert store.keys.locked()
