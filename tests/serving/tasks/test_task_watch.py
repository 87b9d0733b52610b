"""The watch that keeps a replica's table equal to the store's."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watching import Watching, table_of

from serving.errors import StoreError, UnknownTaskError
from serving.routing.routes import Route
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.store.replicas import IN_TOUCH_SECONDS, Replicas
from serving.store.urls import connect
from serving.tasks import TaskTable, TaskWatch
from tests.tiny_checkpoints import Deltas

UNREACHABLE = "redis://127.0.0.1:1/0"

Eventually = Callable[..., None]


@pytest.fixture
def ended() -> Callable[[], bool]:
    """Whether the threads of all watches have ended, but for those of replicas that other tests keep."""
    others = set(threading.enumerate())
    return lambda: not any(t.name == "ken-tasks" and t not in others for t in threading.enumerate())


def test_a_watch_starts_with_what_the_store_holds(store: Store, deltas: Deltas, watch: Callable[..., Watching]) -> None:
    store.tasks.publish("spam", deltas.spam)
    watching = watch(store)
    assert watching.table.current == store.tasks.table()
    assert watching.watch.store_up


def test_a_watch_follows_every_kind_of_change(
    store: Store, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    watching = watch(store)
    changes: list[Callable[[], int]] = [
        lambda: store.tasks.publish("spam", deltas.spam),
        lambda: store.tasks.publish("spam", deltas.spam_2),
        lambda: store.tasks.promote("spam", deltas.spam.digest, alias="canary"),
        lambda: store.tasks.rollback("spam"),
        lambda: store.tasks.publish("topic", deltas.topic),
        lambda: store.tasks.set_route("spam", Route({"live": 9, "canary": 1})),
        lambda: store.keys.put("one", {"name": "ada"}),
        lambda: store.keys.put("two", {"name": "bob"}),
        lambda: store.keys.drop("one"),
        lambda: store.tasks.delete_version("spam", deltas.spam_2.digest),
        lambda: store.tasks.rollback_route("spam"),
        lambda: store.tasks.delete("spam", force=True),
    ]
    for change in changes:
        revision = change()
        eventually(lambda revision=revision: watching.table.current.revision == revision)
        assert watching.table.current == store.tasks.table()


def test_a_watch_that_missed_an_event_reads_everything_again(
    store: Store, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually, store_url: str, namespace: str
) -> None:
    watching = watch(store)
    watching.hold.clear()
    store.tasks.publish("first", deltas.spam)
    eventually(lambda: "first" in watching.table.current.tasks)
    store.tasks.publish("missed", deltas.spam)
    connect(store_url).xdel(f"ken:{{{namespace}}}:events", store.events.last_id())
    store.tasks.publish("last", deltas.spam)
    watching.hold.set()
    eventually(lambda: watching.table.current.revision == 3)
    assert watching.table.current == store.tasks.table()
    assert set(watching.table.current.tasks) == {"first", "missed", "last"}


def test_a_watch_that_missed_a_change_of_keys_reads_them_again(
    store: Store, watch: Callable[..., Watching], eventually: Eventually, store_url: str, namespace: str
) -> None:
    watching = watch(store)
    watching.hold.clear()
    store.keys.put("one", {"name": "ada"})
    eventually(lambda: "one" in watching.table.current.keys)
    store.keys.put("two", {"name": "bob"})
    connect(store_url).xdel(f"ken:{{{namespace}}}:events", store.events.last_id())
    watching.hold.set()
    eventually(lambda: set(watching.table.current.keys) == {"one", "two"})


def test_a_change_of_keys_can_be_waited_for(store: Store, watch: Callable[..., Watching]) -> None:
    watching = watch(store)
    store.keys.put("one", {"name": "ada"})
    assert not store.replicas.wait(store.keys.drop("one"), 20).pending
    assert watching.table.current.keys == {}


def test_a_deleted_version_can_no_longer_be_pinned_once_its_deletion_was_waited_for(
    store: Store, deltas: Deltas, watch: Callable[..., Watching]
) -> None:
    watching = watch(store)
    store.tasks.publish("spam", deltas.spam)
    assert not store.replicas.wait(store.tasks.publish("spam", deltas.spam_2), 20).pending
    assert watching.table.resolve("spam", digest=deltas.spam.digest) == deltas.spam.digest
    assert not store.replicas.wait(store.tasks.delete_version("spam", deltas.spam.digest), 20).pending
    with pytest.raises(UnknownTaskError, match="is no version"):
        watching.table.resolve("spam", digest=deltas.spam.digest)


def test_a_watch_says_where_its_replicas_metrics_are(store: Store, tmp_path: Path) -> None:
    watch = TaskWatch(store, TaskTable(tmp_path / "tasks.json"), "replica-1", address="10.0.0.7:9100")
    watch.start()
    assert {r.replica: r.address for r in store.replicas.reports().values()} == {"replica-1": "10.0.0.7:9100"}
    watch.stop()


def test_a_watch_finds_a_change_whose_event_never_came(
    store: Store, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually, store_url: str, namespace: str
) -> None:
    watching = watch(store)
    watching.hold.clear()
    store.tasks.publish("first", deltas.spam)
    eventually(lambda: "first" in watching.table.current.tasks)
    store.tasks.publish("missed", deltas.spam)
    connect(store_url).xdel(f"ken:{{{namespace}}}:events", store.events.last_id())
    watching.hold.set()
    eventually(lambda: "missed" in watching.table.current.tasks)


def test_a_watch_reports_what_it_has_seen_so_that_a_change_can_be_waited_for(
    store: Store, deltas: Deltas, watch: Callable[..., Watching]
) -> None:
    watching = watch(store)
    revision = store.tasks.publish("spam", deltas.spam)
    assert not store.replicas.wait(revision, 20).pending
    assert watching.table.resolve("spam") == deltas.spam.digest
    assert store.replicas.spread(revision).seen == ("replica-1",)


def test_a_change_is_not_waited_for_as_long_as_one_replica_has_not_seen_it(
    store: Store, deltas: Deltas, watch: Callable[..., Watching]
) -> None:
    watch(store)
    slow = watch(store, replica="slow")
    slow.hold.clear()
    first = store.tasks.publish("first", deltas.spam)
    assert not store.replicas.wait(first, 20).pending
    assert store.replicas.wait(store.tasks.publish("second", deltas.spam), 0.2).pending


def test_a_stopped_replica_is_no_longer_waited_for(
    store: Store, watch: Callable[..., Watching], eventually: Eventually, ended: Callable[[], bool]
) -> None:
    watching = watch(store)
    assert store.replicas.reports()
    watching.watch.stop()
    eventually(ended)
    assert store.replicas.reports() == {}


def test_a_watch_goes_on_after_the_store_restarts(
    tmp_path: Path, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    with embedded_store(tmp_path / "data") as url:
        Store(url).tasks.publish("before", deltas.spam)
        watching = watch(Store(url))
    eventually(lambda: watching.told[-1:] == [False])
    assert not watching.watch.store_up
    assert watching.table.resolve("before") == deltas.spam.digest
    with embedded_store(tmp_path / "data") as url:
        Store(url).tasks.publish("after", deltas.topic)
        eventually(lambda: "after" in watching.table.current.tasks)
        eventually(lambda: watching.told[-1] is True)
        assert watching.watch.store_up
        watching.watch.stop()


def test_the_table_of_another_store_is_not_used(tmp_path: Path) -> None:
    """Neither its tasks nor, above all, its keys."""
    TaskTable(tmp_path / "tasks.json", "redis://staging").replace(table_of("spam"))
    assert not TaskTable(tmp_path / "tasks.json", "redis://production").load_from_disk()
    assert TaskTable(tmp_path / "tasks.json", "redis://staging").load_from_disk()


def test_a_watch_follows_a_full_store(
    private_url: str, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    store, client = Store(private_url), connect(private_url)
    for file in (deltas.spam, deltas.spam_2):
        store.tasks.publish("spam", file)
    watching = watch(store)
    client.config_set("maxmemory", str(client.info("memory")["used_memory"] - 1))
    assert not store.replicas.wait(store.tasks.rollback("spam"), 20).pending
    assert watching.table.resolve("spam") == deltas.spam.digest
    assert watching.watch.store_up


def test_a_copy_on_disk_that_cannot_be_replaced_is_deleted(
    store: Store, deltas: Deltas, watch: Callable[..., Watching], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an outdated one, a key that was revoked since would be valid after a restart while the store is down."""
    store.keys.put("one", {"name": "ada"})
    watching = watch(store)
    assert (tmp_path / "tasks-0.json").exists()

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not store.replicas.wait(store.keys.drop("one"), 20).pending
    assert watching.table.current.keys == {}
    assert not (tmp_path / "tasks-0.json").exists()


def test_a_watch_that_never_reached_the_store_says_so_at_once(tmp_path: Path, watch: Callable[..., Watching]) -> None:
    TaskTable(tmp_path / "tasks-0.json").replace(table_of("spam"))
    began = time.monotonic()
    watching = watch(Store(UNREACHABLE, timeout=0.2))
    said = re.fullmatch(r"unreachable; seconds=(\d+)", watching.watch.notice)
    assert said is not None
    assert IN_TOUCH_SECONDS <= int(said[1]) <= IN_TOUCH_SECONDS + time.monotonic() - began + 1


def test_replicas_that_were_killed_while_the_store_was_down_are_not_waited_for(
    tmp_path: Path, watch: Callable[..., Watching], deltas: Deltas
) -> None:
    made = "from serving.store import Store; import sys; Store(sys.argv[1]).replicas.report('killed', 1)"
    with embedded_store(tmp_path / "data") as url:
        subprocess.run([sys.executable, "-c", made, url], check=True)
        Store(url).tasks.publish("spam", deltas.spam)
    TaskTable(tmp_path / "tasks-0.json").replace(table_of("spam", revision=0))
    watching = watch(Store(url))  # starts while the store is down, as the killed replica's successor does
    with embedded_store(tmp_path / "data"):
        spread = Store(url).replicas.wait(Store(url).tasks.publish("spam", deltas.spam_2), 20)
        assert (spread.seen, spread.pending) == (("replica-1",), ())
        watching.watch.stop()


def test_a_replica_that_is_back_reports_before_the_dead_are_struck_off(
    private_url: str, watch: Callable[..., Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nobody on the list, a change in between would be waited for by nobody."""
    on_the_list: list[set[str]] = []
    strike = Replicas.retire_dead

    def noting(replicas: Replicas) -> None:
        on_the_list.append(set(replicas.reports()))
        strike(replicas)

    monkeypatch.setattr(Replicas, "retire_dead", noting)
    watch(Store(private_url))
    assert on_the_list[0] == {"replica-1"}


def test_a_promotion_is_not_said_to_be_seen_by_a_replica_that_lost_the_store(
    private_url: str, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    store, client = Store(private_url), connect(private_url)
    client.acl_setuser("cut", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all"])
    store.tasks.publish("spam", deltas.spam)
    well, cut = watch(store), watch(Store(private_url.replace("unix://", "unix://cut:pw@")), replica="replica-2")
    client.acl_setuser("cut", enabled=False)
    client.execute_command("CLIENT", "KILL", "USER", "cut")
    eventually(lambda: not cut.watch.store_up)

    revision = store.tasks.publish("spam", deltas.spam_2)
    eventually(lambda: store.replicas.spread(revision).seen == ("replica-1",))
    spread = store.replicas.wait(revision, 0.5)
    assert (spread.seen, spread.pending, spread.silent) == (("replica-1",), ("replica-2",), {})
    assert well.table.resolve("spam") == deltas.spam_2.digest
    assert cut.table.resolve("spam") == deltas.spam.digest

    key = "ken:{default}:reports"
    when, text = client.hget(key, "replica-2").split(b" ", 1)
    client.hset(key, "replica-2", b"%f %s" % (float(when) - 34, text))
    assert set(store.replicas.wait(revision, 0).silent) == {"replica-2"}

    client.acl_setuser("cut", enabled=True)
    assert not store.replicas.wait(revision, 20).pending
    assert cut.table.resolve("spam") == deltas.spam_2.digest


def test_a_watch_out_of_touch_says_for_how_long(
    tmp_path: Path, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    with embedded_store(tmp_path / "data") as url:
        Store(url).tasks.publish("spam", deltas.spam)
        watching = watch(Store(url))
        assert watching.watch.silent_seconds == 0
    eventually(lambda: not watching.watch.store_up)
    assert "does not answer" in str(watching.watch.trouble)
    assert watching.watch.silent_seconds == 0
    watching.watch._heard -= 60
    assert watching.watch.silent_seconds >= 60
    assert re.fullmatch(r"unreachable; seconds=\d+", watching.watch.notice)


def test_a_watch_goes_on_where_the_disk_takes_no_table(
    store: Store,
    deltas: Deltas,
    watch: Callable[..., Watching],
    tmp_path: Path,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watching = watch(store)
    (tmp_path / "tasks-0.json").unlink()
    (tmp_path / "tasks-0.json").mkdir()  # nothing can be renamed over a folder
    for file in (deltas.spam, deltas.spam_2):
        assert not store.replicas.wait(store.tasks.publish("spam", file), 20).pending
        assert watching.table.resolve("spam") == file.digest
    assert not watching.table.saved
    assert "cannot be kept on disk" in str(watching.watch.trouble)
    assert caplog.text.count("cannot be written") == 1
    (tmp_path / "tasks-0.json").rmdir()
    assert not store.replicas.wait(store.tasks.publish("topic", deltas.topic), 20).pending
    assert watching.table.saved
    assert list(tmp_path.glob(".*partial")) == []


def test_a_key_that_one_replica_alone_knows_locks_the_others(
    store: Store, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    """Such as one of its keys file, or its admin token."""
    one, other = watch(store), watch(store)
    assert not other.table.locked
    one.table.lock()
    eventually(lambda: other.table.locked)
    assert store.keys.locked()
    assert not store.replicas.wait(store.events.revision(), 20).pending


def test_with_the_store_down_a_watch_starts_with_the_table_on_disk(
    tmp_path: Path, watch: Callable[..., Watching]
) -> None:
    kept = table_of("spam")
    TaskTable(tmp_path / "tasks-0.json").replace(kept)
    watching = watch(Store(UNREACHABLE, timeout=0.2))
    assert watching.table.current == kept
    assert not watching.watch.store_up


def test_with_the_store_down_and_no_table_on_disk_a_watch_does_not_start(tmp_path: Path) -> None:
    watching = Watching(Store(UNREACHABLE, timeout=0.2), tmp_path / "tasks.json")
    with pytest.raises(StoreError, match="does not answer"):
        watching.watch.start()


def test_a_watch_that_started_from_disk_follows_the_store_once_it_is_there(
    tmp_path: Path, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    with embedded_store(tmp_path / "data") as url:
        Store(url).tasks.publish("spam", deltas.spam)
    TaskTable(tmp_path / "tasks-0.json").replace(table_of("old", revision=1))
    watching = watch(Store(url))
    assert set(watching.table.current.tasks) == {"old"}
    with embedded_store(tmp_path / "data"):
        eventually(lambda: set(watching.table.current.tasks) == {"spam"})
        watching.watch.stop()
    assert watching.told[0] is True


def test_what_a_watch_saw_is_on_disk_for_the_next_start(
    store: Store, deltas: Deltas, watch: Callable[..., Watching], tmp_path: Path
) -> None:
    watch(store)
    assert not store.replicas.wait(store.tasks.publish("spam", deltas.spam), 20).pending
    later = TaskTable(tmp_path / "tasks-0.json")
    assert later.load_from_disk()
    assert later.resolve("spam") == deltas.spam.digest
