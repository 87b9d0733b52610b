"""The task table and the thread that keeps it current."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from serving.errors import InvalidInputError, StoreError, UnavailableError, UnknownTaskError
from serving.routing.routes import Route
from serving.store import Store, Table, Task
from serving.store.embedded import embedded_store
from serving.store.urls import connect
from serving.tasks import TaskTable, TaskWatch
from tests.tiny_checkpoints import Deltas

A, B, C = "a" * 64, "b" * 64, "c" * 64
UNREACHABLE = "redis://127.0.0.1:1/0"

Eventually = Callable[..., None]


def table_of(revision: int = 7, **tasks: dict[str, str]) -> Table:
    return Table(revision, {n: Task(n, revision, aliases, (A, B)) for n, aliases in tasks.items()})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tasks-default.json"


@pytest.fixture
def table(file: Path) -> TaskTable:
    made = TaskTable(file)
    made.replace(table_of(sentiment={"live": A, "canary": B}, spam={"canary": A}))
    return made


# TaskTable


def test_a_task_resolves_to_its_live_version(table: TaskTable) -> None:
    assert table.resolve("sentiment") == A


def test_another_alias_resolves_to_its_own_version(table: TaskTable) -> None:
    assert table.resolve("sentiment", "canary") == B


def test_a_pinned_version_of_the_task_is_taken_whatever_the_alias_says(table: TaskTable) -> None:
    assert table.resolve("sentiment", digest=B) == B


def test_a_pinned_digest_that_is_no_version_of_the_task_is_refused(table: TaskTable) -> None:
    with pytest.raises(UnknownTaskError, match="is no version of task 'sentiment'"):
        table.resolve("sentiment", digest=C)


def test_a_version_is_pinned_by_how_its_digest_begins(table: TaskTable) -> None:
    assert table.resolve("sentiment", digest=B[:12]) == B
    assert table.resolve("sentiment", B[:40]) == B
    with pytest.raises(UnknownTaskError, match="expected a digest"):
        table.resolve("sentiment", digest=B[:11])


def test_a_pin_that_may_be_several_versions_is_refused_with_their_digests(file: Path) -> None:
    one, like_it = A[:63] + "1", A[:63] + "2"
    table = TaskTable(file)
    table.replace(Table(7, {"spam": Task("spam", 7, {"live": one}, (one, like_it))}))
    for named in ({"digest": A[:12]}, {"version": A[:12]}):
        with pytest.raises(InvalidInputError, match=f"2 versions of task 'spam': {one}, {like_it}"):
            table.resolve("spam", **named)


def test_a_version_named_by_its_digest_comes_before_a_pin_and_a_pin_before_an_alias(table: TaskTable) -> None:
    for named in (A, A[:12]):
        assert table.resolve("sentiment", named, digest=B) == A
    assert table.resolve("sentiment", "live", digest=B[:12]) == B


def routed(file: Path, route: Route | None, **aliases: str) -> TaskTable:
    made = TaskTable(file)
    made.replace(Table(7, {"sentiment": Task("sentiment", 7, aliases, (A, B), route)}))
    return made


def test_a_route_chooses_where_no_alias_and_no_version_is_named(file: Path) -> None:
    table = routed(file, Route({"live": 1, "canary": 1}), live=A, canary=B)
    assert {table.resolve("sentiment") for _ in range(100)} == {A, B}
    assert {table.resolve("sentiment", "live") for _ in range(20)} == {A}
    assert {table.resolve("sentiment", digest=B) for _ in range(20)} == {B}


def test_a_key_gets_the_target_its_route_says(file: Path) -> None:
    route = Route({"live": 1, "canary": 1})
    table = routed(file, route, live=A, canary=B)
    keys = [f"user-{i}" for i in range(20)]
    expected = [{"live": A, "canary": B}[route.choose(key, "sentiment")] for key in keys]
    assert [table.resolve("sentiment", key=key) for key in keys] == expected
    assert set(expected) == {A, B}


def test_a_route_may_lead_to_a_version_that_has_no_alias(file: Path) -> None:
    assert routed(file, Route({B: 1}), live=A).resolve("sentiment") == B


def test_a_shadow_is_an_alias_or_a_version_and_not_asked_where_there_is_none(file: Path) -> None:
    told = [
        (Route(shadow="canary"), B),
        (Route(shadow=B), B),
        (Route(shadow=C), None),
        (Route(shadow="next"), None),
        (Route(), None),
        (None, None),
    ]
    for route, digest in told:
        assert routed(file, route, live=A, canary=B).shadow("sentiment") == digest
        assert routed(file, route, live=A, canary=B).resolve("sentiment") == A
    assert routed(file, None).shadow("nobody") is None


def test_a_route_leads_nowhere_the_task_does_not_go(file: Path) -> None:
    with pytest.raises(UnknownTaskError, match=f"'{C}' is no version"):
        routed(file, Route({C: 1}), live=A).resolve("sentiment")


def test_an_unknown_task_is_refused_with_names_near_it(table: TaskTable) -> None:
    with pytest.raises(UnknownTaskError, match="no task 'sentimnet'; did you mean 'sentiment'"):
        table.resolve("sentimnet")


def test_a_name_near_no_other_gets_no_suggestion(table: TaskTable) -> None:
    with pytest.raises(UnknownTaskError) as found:
        table.resolve("weather")
    assert "did you mean" not in str(found.value)


def test_an_alias_the_task_lacks_is_refused_with_those_it_has(table: TaskTable) -> None:
    with pytest.raises(UnknownTaskError, match="task 'spam' has no alias 'live'; it has: canary"):
        table.resolve("spam")


def test_before_the_first_table_nothing_resolves_and_it_is_worth_retrying(file: Path) -> None:
    with pytest.raises(UnavailableError):
        TaskTable(file).resolve("sentiment")


def test_the_last_table_is_found_on_disk_as_it_was(table: TaskTable, file: Path) -> None:
    later = TaskTable(file)
    assert later.load_from_disk()
    assert later.current == table.current


def test_keys_and_routes_are_found_on_disk_as_they_were(file: Path) -> None:
    task = Task("spam", 7, {"live": A}, (A, B), Route({"live": 9, B: 1}, shadow=B))
    TaskTable(file).replace(Table(7, {"spam": task}, {"one": {"name": "ada", "scopes": ["predict"]}}))
    later = TaskTable(file)
    assert later.load_from_disk()
    assert later.current == Table(7, {"spam": task}, {"one": {"name": "ada", "scopes": ["predict"]}})


def test_nobody_else_may_read_the_table_on_disk(file: Path) -> None:
    file.write_bytes(b"{}")
    file.chmod(0o644)
    TaskTable(file).replace(Table(7, {}, {"one": {"hash": C}}))
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(file.parent.iterdir()) == {file, file.with_suffix(".locked")}


@pytest.mark.parametrize("known", [Table(7, {}, {"one": {"hash": C}}), Table(7, {}, locked=True)])
def test_a_table_with_keys_locks_for_good(known: Table, file: Path) -> None:
    table = TaskTable(file)
    table.replace(Table(6, {}))
    assert not table.locked
    table.replace(known)
    assert table.locked
    for later in (table, TaskTable(file)):
        later.replace(Table(0, {}))
        assert later.locked
    file.write_bytes(b"damaged")
    assert TaskTable(file).locked


def test_keys_on_a_disk_of_an_older_version_lock_too(file: Path) -> None:
    file.write_bytes(orjson.dumps({"revision": 7, "tasks": {}, "keys": {"one": {"name": "ada"}}}))
    table = TaskTable(file)
    assert table.load_from_disk()
    assert table.locked
    assert TaskTable(file).locked


def test_a_table_kept_before_there_were_routes_and_keys_still_loads(file: Path) -> None:
    task = {"name": "spam", "revision": 3, "aliases": {"live": A}, "versions": [A, B]}
    file.write_bytes(orjson.dumps({"revision": 7, "tasks": {"spam": task}}))
    table = TaskTable(file)
    assert table.load_from_disk()
    assert table.current == Table(7, {"spam": Task("spam", 3, {"live": A}, (A, B))})
    assert table.resolve("spam") == A


def test_where_no_table_was_kept_none_is_loaded(file: Path) -> None:
    assert not TaskTable(file).load_from_disk()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"revision": 1, "tasks": []}',
        b'{"revision": 1, "tasks": {"a": 1}}',
        b'{"revision": 1, "tasks": {}, "keys": 1}',
        b'{"revision": 1, "tasks": {"a": {"name": "a", "revision": 1, "aliases": {}, "versions": [], "route": 1}}}',
    ],
)
def test_a_damaged_table_on_disk_is_as_good_as_none(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert not TaskTable(file).load_from_disk()


def test_replicas_that_share_a_data_directory_keep_the_table_without_hurting_one_another(file: Path) -> None:
    fork = multiprocessing.get_context("fork")

    def replace_often(mine: int) -> None:
        table = TaskTable(file)
        for i in range(400):
            table.replace(table_of(i, **{f"task-{mine}": {"live": A}}))

    replicas = [fork.Process(target=replace_often, args=(i,)) for i in range(3)]
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.join(60)
    assert [r.exitcode for r in replicas] == [0, 0, 0]
    assert TaskTable(file).load_from_disk()


# TaskWatch


class Watching:
    """A watch on a store, and what it said."""

    def __init__(self, store: Store, file: Path, replica: str = "replica-1") -> None:
        self.table = TaskTable(file)
        self.told: list[bool] = []
        self.hold = threading.Event()
        self.hold.set()
        self.watch = TaskWatch(store, self.table, replica, self._hear)

    def _hear(self, up: bool) -> None:
        self.told.append(up)
        self.hold.wait(20)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watching]]:
    with ExitStack() as stack:

        def start(store: Store, **options: Any) -> Watching:
            watching = Watching(store, tmp_path / f"tasks-{len(options)}.json", **options)
            stack.callback(watching.watch.stop)
            stack.callback(watching.hold.set)
            watching.watch.start()
            return watching

        yield start


@pytest.fixture
def ended() -> Callable[[], bool]:
    """Whether the threads of all watches have ended."""
    return lambda: not any(t.name == "ken-tasks" for t in threading.enumerate())


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
    assert store.replicas.wait(store.keys.drop("one"), 20)
    assert watching.table.current.keys == {}


def test_a_deleted_version_can_no_longer_be_pinned_once_its_deletion_was_waited_for(
    store: Store, deltas: Deltas, watch: Callable[..., Watching]
) -> None:
    watching = watch(store)
    store.tasks.publish("spam", deltas.spam)
    assert store.replicas.wait(store.tasks.publish("spam", deltas.spam_2), 20)
    assert watching.table.resolve("spam", digest=deltas.spam.digest) == deltas.spam.digest
    assert store.replicas.wait(store.tasks.delete_version("spam", deltas.spam.digest), 20)
    with pytest.raises(UnknownTaskError, match="is no version"):
        watching.table.resolve("spam", digest=deltas.spam.digest)


def test_a_watch_says_where_its_replicas_metrics_are(store: Store, tmp_path: Path) -> None:
    watch = TaskWatch(store, TaskTable(tmp_path / "tasks.json"), "replica-1", address="10.0.0.7:9100")
    watch.start()
    assert store.replicas.addresses() == {"replica-1": "10.0.0.7:9100"}
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
    assert store.replicas.wait(revision, 20)
    assert watching.table.resolve("spam") == deltas.spam.digest
    assert store.replicas.revisions() == {"replica-1": revision}


def test_a_change_is_not_waited_for_as_long_as_one_replica_has_not_seen_it(
    store: Store, deltas: Deltas, watch: Callable[..., Watching]
) -> None:
    watch(store)
    slow = watch(store, replica="slow")
    slow.hold.clear()
    first = store.tasks.publish("first", deltas.spam)
    assert store.replicas.wait(first, 20)
    assert not store.replicas.wait(store.tasks.publish("second", deltas.spam), 0.2)


def test_a_stopped_replica_is_no_longer_waited_for(
    store: Store, watch: Callable[..., Watching], eventually: Eventually, ended: Callable[[], bool]
) -> None:
    watching = watch(store)
    assert store.replicas.revisions()
    watching.watch.stop()
    eventually(ended)
    assert store.replicas.revisions() == {}


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


def test_a_watch_believes_a_store_that_came_back_empty(
    private_url: str, deltas: Deltas, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    store = Store(private_url)
    store.tasks.publish("spam", deltas.spam)
    watching = watch(store)
    connect(private_url).flushall()
    eventually(lambda: watching.table.current == Table(0, {}))


def test_a_store_that_came_back_empty_is_locked_again_by_who_knew_its_keys(
    private_url: str, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    store = Store(private_url)
    store.keys.put("one", {"name": "ada"})
    watch(store)
    connect(private_url).flushall()
    eventually(store.keys.locked)
    assert store.keys.all() == {}
    newcomer = watch(store)
    assert newcomer.table.locked
    assert newcomer.table.current.keys == {}


def test_with_keys_on_disk_and_the_store_empty_at_the_start_both_are_locked(
    store: Store, watch: Callable[..., Watching], tmp_path: Path
) -> None:
    (tmp_path / "tasks-0.json").write_bytes(orjson.dumps({"revision": 7, "tasks": {}, "keys": {"one": {"name": "a"}}}))
    watching = watch(store)
    assert watching.table.current.keys == {}
    assert watching.table.locked
    assert store.keys.locked()


def test_a_key_that_one_replica_alone_knows_locks_the_others(
    store: Store, watch: Callable[..., Watching], eventually: Eventually
) -> None:
    """Such as one of its keys file, or its admin token."""
    one, other = watch(store), watch(store)
    assert not other.table.locked
    one.table.lock()
    eventually(lambda: other.table.locked)
    assert store.keys.locked()
    assert store.replicas.wait(store.events.revision(), 20)


def test_with_the_store_down_a_watch_starts_with_the_table_on_disk(
    tmp_path: Path, watch: Callable[..., Watching]
) -> None:
    kept = table_of(spam={"live": A})
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
    TaskTable(tmp_path / "tasks-0.json").replace(table_of(old={"live": A}))
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
    assert store.replicas.wait(store.tasks.publish("spam", deltas.spam), 20)
    later = TaskTable(tmp_path / "tasks-0.json")
    assert later.load_from_disk()
    assert later.resolve("spam") == deltas.spam.digest
