"""The table a replica answers from, and its copy on disk."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import orjson
import pytest

from serving.errors import InvalidInputError, UnavailableError, UnknownTaskError
from serving.routing.routes import Route
from serving.store import Table, Task
from serving.tasks import TaskTable

A, B, C = "a" * 64, "b" * 64, "c" * 64


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
