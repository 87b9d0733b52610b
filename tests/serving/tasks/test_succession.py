"""What becomes of a known table when the store is read: tables made by hand, without a store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from serving.store import Lineage, Table, Task
from serving.store.adoptions import adoption
from serving.tasks.succession import carry_over, succeed

OLD, NEW, NEWER = "a" * 64, "b" * 64, "c" * 64


def task(name: str, revision: int, digest: str = OLD) -> Task:
    return Task(name, revision, {"live": digest}, (digest,))


def table(revision: int, *tasks: Task, lineage: Lineage | None = None, **options: Any) -> Table:
    lineage = lineage or line("e", revision)
    return Table(revision, {t.name: t for t in tasks}, lineage=lineage, **options)


def line(epoch: str, to: int, fork: int = 0, name: str = "") -> Lineage:
    """The lineage of a store that made a change for each revision, from `fork` on its own ones."""
    marks = {r: f"{epoch}{r}" if not fork or r <= fork else f"{epoch}{name}{r}" for r in range(1, to + 1)}
    return Lineage(epoch, marks)


def test_the_first_table_is_the_stores() -> None:
    found = table(3, task("spam", 3))
    assert succeed(None, found, was_other=False) == succeed(found, found, was_other=False)
    assert succeed(None, found, was_other=False).table is found


def test_a_store_that_went_on_replaces_what_is_known_deletions_included() -> None:
    known, found = table(3, task("spam", 2), task("topic", 3)), table(9, task("topic", 8, NEW))
    succession = succeed(known, found, was_other=False)
    assert succession.table is found
    assert not succession.other_history


def test_an_empty_store_takes_nothing_away() -> None:
    known = table(3, task("spam", 2), keys={"one": {"name": "ada"}})
    succession = succeed(known, Table(0, {}), was_other=False)
    assert succession.table == known
    assert succession.other_history


def test_what_is_published_to_a_store_that_was_emptied_is_taken_over() -> None:
    known = table(900, task("spam", 2), task("topic", 900))
    found = table(2, task("spam", 1, NEW), task("fresh", 2, NEW), lineage=line("f", 2))
    succession = succeed(known, found, was_other=False)
    assert succession.other_history
    assert {name: t.aliases["live"] for name, t in succession.table.tasks.items()} == {
        "spam": NEW,
        "topic": OLD,
        "fresh": NEW,
    }
    assert (succession.table.revision, succession.table.lineage) == (900, known.lineage)


def test_an_old_backup_does_not_bring_back_old_versions() -> None:
    known = table(9, task("spam", 9, NEW), task("topic", 4))
    backup = table(5, task("spam", 5), task("topic", 4))
    succession = succeed(known, backup, was_other=False)
    assert succession.other_history
    assert succession.table.tasks == known.tasks


def test_an_old_backup_with_as_many_changes_is_not_taken_for_the_same_store() -> None:
    known = table(9, task("spam", 9, NEW), task("topic", 4))
    restored = table(9, task("spam", 5), task("topic", 9, NEWER), lineage=line("e", 9, fork=5, name="x"))
    succession = succeed(known, restored, was_other=False)
    assert succession.other_history
    assert succession.table.tasks == {"spam": task("spam", 9, NEW), "topic": task("topic", 9, NEWER)}


def test_an_old_backup_with_more_changes_is_not_taken_for_the_same_store() -> None:
    known = table(9, task("spam", 9, NEW))
    restored = table(20, task("spam", 5), task("topic", 20, NEWER), lineage=line("e", 20, fork=5, name="x"))
    succession = succeed(known, restored, was_other=False)
    assert succession.other_history
    assert succession.table.tasks == {"spam": task("spam", 9, NEW), "topic": task("topic", 20, NEWER)}


def test_the_store_that_was_known_is_known_again_when_it_comes_back() -> None:
    known = table(3, task("spam", 2))
    merged = succeed(known, table(1, task("fresh", 1), lineage=line("f", 1)), was_other=False)
    back = table(4, task("spam", 4, NEW), lineage=line("e", 4))
    succession = succeed(merged.table, back, merged.other_history)
    assert succession.table is back
    assert not succession.other_history


def test_revisions_alone_do_not_make_another_store_the_known_one() -> None:
    """Its marks may be gone by then: the latest 1000 are kept."""
    known = table(3, task("spam", 2), lineage=Lineage())
    merged = succeed(known, table(1, lineage=line("f", 1)), was_other=False)
    assert merged.other_history
    much_later = table(5000, task("topic", 5000), lineage=Lineage("f", {5000: "f5000"}))
    assert succeed(merged.table, much_later, merged.other_history).other_history


def test_a_person_can_say_that_another_store_is_right() -> None:
    known = table(3, task("spam", 2), keys={"one": {"name": "ada"}})
    adopted = table(2, task("topic", 1), lineage=replace(line("f", 2), adoptions=frozenset({adoption("yes", "e")})))
    succession = succeed(known, adopted, was_other=True)
    assert succession.table is adopted
    assert not succession.other_history


def test_a_word_given_before_a_backup_was_made_does_not_count_for_its_restoration() -> None:
    said = frozenset({adoption("yes", "e")})
    known = table(9, task("spam", 9, NEW), lineage=replace(line("e", 9), adoptions=said))
    backup = table(5, task("spam", 5), lineage=replace(line("e", 5), adoptions=said))
    assert succeed(known, backup, was_other=False).other_history


def test_a_word_about_another_history_does_not_count() -> None:
    """As where a server is pointed at a store that once replaced the store of other servers."""
    known = table(3, task("spam", 2))
    said = frozenset({adoption("yes", "others")})
    found = table(5, task("topic", 1), lineage=replace(line("f", 5), adoptions=said))
    assert succeed(known, found, was_other=False).other_history


def test_what_was_changed_in_another_store_while_nobody_looked_is_carried_over_too() -> None:
    known = table(9, task("spam", 9, NEW), task("topic", 4), keys={"one": {"name": "ada"}, "two": {"name": "bob"}})
    read = table(6, task("spam", 5), task("topic", 4), lineage=line("e", 6, fork=5, name="x"), keys=known.keys)
    found = table(8, task("spam", 5), lineage=line("e", 8, fork=5, name="x"), keys={"two": {"name": "bob"}})
    succession = succeed(known, found, was_other=True, read=read)
    assert succession.other_history
    assert set(succession.table.tasks) == {"spam"}
    assert succession.table.tasks["spam"] == task("spam", 9, NEW)
    assert set(succession.table.keys) == {"two"}


@pytest.mark.parametrize(
    ("known", "found"),
    [
        pytest.param(table(5, lineage=Lineage()), table(5, lineage=Lineage()), id="both-from-before"),
        pytest.param(table(5, lineage=Lineage()), table(6, lineage=Lineage("e", {6: "e6"})), id="first-marked-change"),
        pytest.param(line_ := table(5), table(7, lineage=Lineage("e", {7: "e7"})), id="marks-that-were-dropped"),
        pytest.param(Table(0, {}), line_, id="nothing-was-known"),
    ],
)
def test_where_marks_are_missing_a_store_with_a_higher_revision_is_believed(known: Table, found: Table) -> None:
    assert not succeed(known, found, was_other=False).other_history


def test_a_table_from_before_marks_notices_a_revision_that_falls() -> None:
    known = table(5, task("spam", 5), lineage=Lineage())
    succession = succeed(known, table(1, task("topic", 1), lineage=line("f", 1)), was_other=False)
    assert succession.other_history
    assert set(succession.table.tasks) == {"spam", "topic"}


def test_keys_of_an_old_backup_are_not_valid_again() -> None:
    known = table(9, keys={"one": {"name": "ada"}})
    backup = table(5, keys={"one": {"name": "ada"}, "revoked": {"name": "eve"}})
    assert succeed(known, backup, was_other=False).table.keys == {"one": {"name": "ada"}}


def test_keys_made_in_a_store_that_was_emptied_are_valid_beside_those_known() -> None:
    known = table(9, keys={"one": {"name": "ada"}}, locked=True)
    found = table(1, keys={"two": {"name": "bob"}}, lineage=line("f", 1))
    succession = succeed(known, found, was_other=False)
    assert set(succession.table.keys) == {"one", "two"}
    assert succession.table.locked


def test_changes_in_another_store_are_carried_over_one_by_one() -> None:
    known = table(9, task("spam", 2), task("topic", 3), keys={"one": {"name": "ada"}, "two": {"name": "bob"}})
    before = table(1, task("topic", 1), lineage=line("f", 1), keys={"two": {"name": "bob"}})
    after = table(3, task("fresh", 2, NEW), lineage=line("f", 3), keys={"three": {"name": "cy"}}, locked=True)
    carried = carry_over(known, before, after)
    assert set(carried.tasks) == {"spam", "fresh"}
    assert set(carried.keys) == {"one", "three"}
    assert carried.locked
    assert (carried.revision, carried.lineage) == (9, known.lineage)
