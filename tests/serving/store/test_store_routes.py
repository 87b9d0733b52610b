"""Routes in the store, and what is left of them and of aliases when versions are deleted."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import ConflictError, InvalidInputError, UnknownTaskError
from serving.routing.routes import Route
from serving.store import Collected, Store, Task
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas

CANARY = Route({"live": 90, "canary": 10})
HALVES = Route({"live": 1, "canary": 1})


@pytest.fixture
def split(store: Store, deltas: Deltas) -> Store:
    """A task whose live version came after another one, with a canary that has none before."""
    store.tasks.publish("spam", deltas.spam_3)
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam_2, alias="canary")
    return store


def spam(store: Store) -> Task:
    found = store.tasks.get("spam")
    assert found is not None
    return found


# Routes


def test_a_route_is_part_of_its_task(split: Store) -> None:
    revision = split.tasks.set_route("spam", CANARY)
    assert spam(split).route == CANARY
    assert spam(split).revision == split.events.revision() == revision
    assert spam(split).aliases.keys() == {"live", "canary"}
    assert split.tasks.table().tasks["spam"] == spam(split)


def test_without_a_route_there_is_none(split: Store) -> None:
    assert spam(split).route is None


def test_a_route_may_name_a_version_itself(split: Store, deltas: Deltas) -> None:
    route = Route({"live": 3, deltas.spam_3.digest: 1})
    split.tasks.set_route("spam", route)
    assert spam(split).route == route


def test_a_route_can_be_taken_away(split: Store) -> None:
    split.tasks.set_route("spam", CANARY)
    split.tasks.set_route("spam", None)
    assert spam(split).route is None


def test_rolling_a_route_back_undoes_changes_one_by_one_until_none_is_left(split: Store) -> None:
    for route in (CANARY, None, HALVES):
        split.tasks.set_route("spam", route)
    for before in (None, CANARY, None):
        split.tasks.rollback_route("spam")
        assert spam(split).route == before
    with pytest.raises(ConflictError, match="no other route before"):
        split.tasks.rollback_route("spam")


def test_the_same_route_again_leaves_nothing_more_to_roll_back_to(split: Store) -> None:
    split.tasks.set_route("spam", CANARY)
    split.tasks.set_route("spam", Route(dict(reversed(CANARY.weights.items()))))
    split.tasks.rollback_route("spam")
    assert spam(split).route is None


def test_aliases_and_the_route_roll_back_apart(split: Store, deltas: Deltas) -> None:
    split.tasks.set_route("spam", CANARY)
    split.tasks.rollback("spam")
    assert spam(split).route == CANARY
    split.tasks.rollback_route("spam")
    assert spam(split).aliases["live"] == deltas.spam_3.digest


@pytest.mark.parametrize("target", ["shadow", "f" * 64])
def test_a_route_to_what_the_task_does_not_have_is_refused_and_not_counted(target: str, split: Store) -> None:
    before = split.tasks.table()
    with pytest.raises(UnknownTaskError, match=f"'{target}' is neither an alias nor a version of task 'spam'"):
        split.tasks.set_route("spam", Route({"live": 1, target: 1}))
    assert split.tasks.table() == before


def test_a_route_to_another_tasks_version_is_refused(split: Store, deltas: Deltas) -> None:
    split.tasks.publish("emotion", deltas.emotion)
    with pytest.raises(UnknownTaskError, match="neither an alias nor a version"):
        split.tasks.set_route("spam", Route({deltas.emotion.digest: 1}))


def test_an_unknown_task_has_no_route_to_set_or_roll_back(store: Store) -> None:
    for change in (lambda: store.tasks.set_route("nobody", HALVES), lambda: store.tasks.rollback_route("nobody")):
        with pytest.raises(UnknownTaskError, match="no task 'nobody'"):
            change()
    assert store.events.revision() == 0


def test_a_task_published_again_does_not_remember_its_route(split: Store, deltas: Deltas) -> None:
    split.tasks.set_route("spam", CANARY)
    split.tasks.set_route("spam", None)
    split.tasks.delete("spam", force=True)
    split.tasks.publish("spam", deltas.spam)
    assert spam(split).route is None
    with pytest.raises(ConflictError):
        split.tasks.rollback_route("spam")


def test_history_tells_who_routed_where(split: Store) -> None:
    split.tasks.set_route("spam", CANARY, who="ada")
    split.tasks.set_route("spam", None, who="bob")
    split.tasks.rollback_route("spam", who="eve")
    told = split.history.of("spam", 3)
    assert [(h["action"], h["who"], h["route"], h["previous_route"]) for h in told] == [
        ("rollback-route", "eve", CANARY.weights, None),
        ("route", "bob", None, CANARY.weights),
        ("route", "ada", CANARY.weights, None),
    ]
    assert [h["revision"] for h in told] == [6, 5, 4]


# Shadows

SHADOWED = Route({"live": 1}, shadow="canary")


def test_a_shadow_is_part_of_the_route_and_rolls_back_with_it(split: Store, deltas: Deltas) -> None:
    routes = [CANARY, SHADOWED, Route({"live": 1}, shadow=deltas.spam_3.digest), Route({"live": 1})]
    for route in routes:
        split.tasks.set_route("spam", route)
        assert spam(split).route == split.tasks.table().tasks["spam"].route == route
    for before in (*routes[2::-1], None):
        split.tasks.rollback_route("spam")
        assert spam(split).route == before


@pytest.mark.parametrize("target", ["next", "f" * 64])
def test_a_shadow_the_task_does_not_have_is_refused(target: str, split: Store) -> None:
    with pytest.raises(UnknownTaskError, match=f"'{target}' is neither an alias nor a version of task 'spam'"):
        split.tasks.set_route("spam", Route(shadow=target))
    assert spam(split).route is None


def test_a_version_that_is_the_shadow_is_not_deleted_unless_forced_and_then_the_weights_stay(
    split: Store, deltas: Deltas
) -> None:
    split.tasks.set_route("spam", Route({"live": 3}, shadow=deltas.spam_3.digest))
    with pytest.raises(ConflictError, match="in use by the route;"):
        split.tasks.delete_version("spam", deltas.spam_3.digest)
    split.tasks.delete_version("spam", deltas.spam_3.digest, force=True)
    assert spam(split).route == Route({"live": 3})


def test_a_shadow_goes_with_its_alias_and_no_rollback_brings_it_back(split: Store, deltas: Deltas) -> None:
    split.tasks.set_route("spam", SHADOWED)
    split.tasks.set_route("spam", Route({"live": 2}, shadow="canary"))
    split.tasks.delete_version("spam", deltas.spam_2.digest, force=True)
    assert spam(split).route == Route({"live": 2})
    split.tasks.rollback_route("spam")
    assert spam(split).route == Route({"live": 1})


def test_a_shadow_stays_while_its_weights_lose_a_target_and_goes_with_the_last(split: Store, deltas: Deltas) -> None:
    split.tasks.set_route("spam", Route({"live": 9, deltas.spam_3.digest: 1}, shadow="canary"))
    split.tasks.delete_version("spam", deltas.spam_3.digest, force=True)
    assert spam(split).route == Route({"live": 9}, shadow="canary")
    split.tasks.delete_version("spam", deltas.spam.digest, force=True)
    assert spam(split).route is None


def test_history_tells_who_set_which_shadow(split: Store) -> None:
    split.tasks.set_route("spam", CANARY)
    split.tasks.set_route("spam", SHADOWED)
    split.tasks.set_route("spam", None)
    told = [(h["shadow"], h["previous_shadow"]) for h in split.history.of("spam", 3)]
    assert told == [(None, "canary"), ("canary", None), (None, None)]


# Deleting a version


def test_a_version_nobody_points_at_is_deleted_and_its_bytes_can_be_freed(split: Store, deltas: Deltas) -> None:
    revision = split.tasks.delete_version("spam", deltas.spam_3.digest)
    assert spam(split).versions == (deltas.spam.digest, deltas.spam_2.digest)
    assert spam(split).revision == split.events.revision() == revision
    assert split.garbage.collect() == Collected(1, deltas.spam_3.size)


def test_no_alias_rolls_back_to_a_deleted_version(split: Store, deltas: Deltas) -> None:
    split.tasks.delete_version("spam", deltas.spam_3.digest)
    with pytest.raises(ConflictError, match="no earlier version"):
        split.tasks.rollback("spam")
    assert spam(split).aliases["live"] == deltas.spam.digest


def test_rollback_goes_past_a_deleted_version_and_never_to_where_it_is(split: Store, deltas: Deltas) -> None:
    split.tasks.publish("spam", deltas.spam_3)  # live was: spam_3, spam, and is spam_3 again
    split.tasks.delete_version("spam", deltas.spam.digest)
    with pytest.raises(ConflictError, match="no earlier version"):
        split.tasks.rollback("spam")


def test_a_deleted_version_can_be_published_again(split: Store, deltas: Deltas) -> None:
    split.tasks.delete_version("spam", deltas.spam_3.digest)
    split.tasks.publish_digest("spam", deltas.spam_3.digest)
    assert spam(split).aliases["live"] == deltas.spam_3.digest
    assert spam(split).versions[-1] == deltas.spam_3.digest


def test_a_version_an_alias_points_at_is_not_deleted(split: Store, deltas: Deltas) -> None:
    split.tasks.promote("spam", deltas.spam.digest, alias="stable")
    before = split.tasks.table()
    with pytest.raises(ConflictError, match=r"in use by alias 'live', alias 'stable'; .*use force"):
        split.tasks.delete_version("spam", deltas.spam.digest)
    assert split.tasks.table() == before


def test_a_version_the_route_points_at_is_not_deleted(split: Store, deltas: Deltas) -> None:
    split.tasks.set_route("spam", Route({"live": 9, deltas.spam_3.digest: 1}))
    with pytest.raises(ConflictError, match="in use by the route;"):
        split.tasks.delete_version("spam", deltas.spam_3.digest)


def test_a_forced_deletion_sends_each_alias_back_to_what_still_is_a_version(split: Store, deltas: Deltas) -> None:
    split.tasks.publish("spam", deltas.emotion, allow_other_labels=True)
    split.tasks.delete_version("spam", deltas.spam.digest)
    split.tasks.delete_version("spam", deltas.emotion.digest, force=True)
    assert spam(split).aliases == {"live": deltas.spam_3.digest, "canary": deltas.spam_2.digest}


def test_an_alias_with_nothing_before_goes_away_and_so_does_its_part_of_the_route(split: Store, deltas: Deltas) -> None:
    split.tasks.set_route("spam", CANARY)
    split.tasks.delete_version("spam", deltas.spam_2.digest, force=True)
    assert spam(split).aliases == {"live": deltas.spam.digest}
    assert spam(split).route == Route({"live": 90})


def test_a_route_of_which_nothing_is_left_is_gone(split: Store, deltas: Deltas) -> None:
    split.tasks.set_route("spam", Route({"canary": 1, deltas.spam_2.digest: 1}))
    split.tasks.delete_version("spam", deltas.spam_2.digest, force=True)
    assert spam(split).route is None


def test_no_rollback_brings_back_a_route_to_what_was_deleted(split: Store, deltas: Deltas) -> None:
    split.tasks.set_route("spam", Route({deltas.spam_3.digest: 1}))
    split.tasks.set_route("spam", Route({"live": 2, deltas.spam_3.digest: 1}))
    split.tasks.set_route("spam", HALVES)
    split.tasks.delete_version("spam", deltas.spam_3.digest)
    split.tasks.rollback_route("spam")
    assert spam(split).route == Route({"live": 2})
    split.tasks.rollback_route("spam")
    assert spam(split).route is None
    with pytest.raises(ConflictError):
        split.tasks.rollback_route("spam")


def test_a_task_whose_last_version_was_forced_out_is_empty_and_can_be_published_to(
    store: Store, deltas: Deltas
) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.delete_version("spam", deltas.spam.digest, force=True)
    assert (spam(store).aliases, spam(store).versions) == ({}, ())
    store.tasks.publish("spam", deltas.spam_2)
    assert spam(store).aliases == {"live": deltas.spam_2.digest}


def test_a_version_of_two_tasks_stays_the_others(split: Store, deltas: Deltas) -> None:
    split.tasks.publish("twin", deltas.spam_3)
    split.tasks.delete_version("spam", deltas.spam_3.digest)
    assert split.garbage.collect().deltas == 0
    assert split.tasks.table().tasks["twin"].versions == (deltas.spam_3.digest,)


def test_what_is_no_version_cannot_be_deleted(split: Store, deltas: Deltas) -> None:
    refused: list[tuple[str, str, type[Exception]]] = [
        ("nobody", deltas.spam.digest, UnknownTaskError),
        ("spam", deltas.emotion.digest, UnknownTaskError),
        ("spam", "latest", UnknownTaskError),
        ("a/b", deltas.spam.digest, InvalidInputError),
    ]
    for task, digest, error in refused:
        with pytest.raises(error):
            split.tasks.delete_version(task, digest, force=True)
    assert split.events.revision() == 3


def test_history_tells_what_was_deleted_and_what_became_of_aliases_and_route(split: Store, deltas: Deltas) -> None:
    split.tasks.set_route("spam", CANARY)
    split.tasks.delete_version("spam", deltas.spam_2.digest, who="ada", force=True)
    rerouted, moved, deleted = split.history.of("spam", 3)
    assert (deleted["action"], deleted["digest"]) == ("delete-version", deltas.spam_2.digest)
    assert (moved["action"], moved["alias"], moved["digest"], moved["previous"]) == (
        "fall-back", "canary", "", deltas.spam_2.digest,
    )  # fmt: skip
    assert (rerouted["route"], rerouted["previous_route"]) == ({"live": 90}, CANARY.weights)
    assert {(h["who"], h["revision"]) for h in (rerouted, moved, deleted)} == {("ada", split.events.revision())}


# Deleting a task


def test_a_task_that_answers_is_not_deleted(split: Store) -> None:
    split.tasks.set_route("spam", CANARY)
    before = split.tasks.table()
    with pytest.raises(ConflictError, match=r"in use by the route, alias 'canary', alias 'live'; .*use force"):
        split.tasks.delete("spam")
    assert split.tasks.table() == before


def test_a_task_without_aliases_needs_no_force(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.delete_version("spam", deltas.spam.digest, force=True)
    store.tasks.delete("spam")
    assert store.tasks.table().tasks == {}


def test_a_deleted_task_leaves_nothing_but_its_history(split: Store, store_url: str, namespace: str) -> None:
    split.tasks.set_route("spam", CANARY)
    split.tasks.set_route("spam", HALVES)
    split.tasks.delete("spam", force=True)
    raw: Any = connect(store_url)
    found = {
        key.decode().split("}:", 1)[1]: raw.ttl(key) for key in raw.scan_iter(f"ken:{{{namespace}}}:*", count=1000)
    }
    assert {name for name in found if not name.startswith("made:")} == {"history:spam", "events", "revision", "marks"}
    assert all(0 < seconds <= 600 for name, seconds in found.items() if name.startswith("made:"))
