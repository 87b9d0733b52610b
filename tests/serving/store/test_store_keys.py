"""Records of API keys in the store, and where replicas say their metrics are."""

from __future__ import annotations

import pytest

from serving.errors import InvalidInputError, UnknownKeyError
from serving.store import Store
from serving.store.urls import connect

ADA = {"name": "ada", "hash": "c" * 64, "scopes": ["predict"], "tasks": ["*"], "created": 1, "expires": None}


def test_a_key_is_kept_as_it_was_given(store: Store) -> None:
    store.keys.put("0123456789ab", ADA)
    assert store.keys.all() == store.tasks.table().keys == {"0123456789ab": ADA}


def test_a_key_put_again_is_replaced(store: Store) -> None:
    store.keys.put("0123456789ab", ADA)
    store.keys.put("0123456789ab", ADA | {"expires": 5})
    assert store.keys.all() == {"0123456789ab": ADA | {"expires": 5}}


def test_a_dropped_key_is_gone(store: Store) -> None:
    store.keys.put("one", ADA)
    store.keys.put("two", ADA)
    store.keys.drop("one")
    assert list(store.keys.all()) == ["two"]


def test_an_unknown_key_cannot_be_dropped_and_that_is_not_counted(store: Store) -> None:
    with pytest.raises(UnknownKeyError, match="no key 'nobody'"):
        store.keys.drop("nobody")
    assert store.events.revision() == 0


def test_an_id_that_fits_no_url_is_refused(store: Store) -> None:
    for change in (lambda: store.keys.put("a/b", ADA), lambda: store.keys.drop("a/b")):
        with pytest.raises(InvalidInputError, match="key 'a/b' is not usable"):
            change()


def test_a_key_locks_and_nothing_that_is_done_to_keys_opens_again(store: Store) -> None:
    assert not store.keys.locked()
    assert not store.tasks.table().locked
    store.keys.put("one", ADA)
    store.keys.drop("one")
    assert store.keys.all() == {}
    assert store.keys.locked()
    assert store.tasks.table().locked


def test_locking_is_a_change_that_is_made_once(store: Store) -> None:
    assert [store.keys.lock("replica-1"), store.keys.lock("replica-2")] == [1, 1]
    assert [(e.task, e.revision) for e in store.events.after("0", 0.1)] == [("@keys", 1)]
    assert [(h["action"], h["who"]) for h in store.history.of("@keys")] == [("lock", "replica-1")]
    assert store.keys.locked()
    assert store.keys.all() == {}


def test_revoking_a_key_of_a_store_that_never_locked_does(store: Store, store_url: str, namespace: str) -> None:
    """An older version made it."""
    store.keys.put("one", ADA)
    connect(store_url).delete(f"ken:{{{namespace}}}:locked")
    assert not store.keys.locked()
    store.keys.drop("one")
    assert store.keys.locked()


def test_a_change_of_keys_counts_and_is_told_like_one_of_tasks(store: Store) -> None:
    assert [store.keys.put("one", ADA), store.keys.drop("one")] == [1, 2]
    assert [(e.task, e.revision) for e in store.events.after("0", 0.1)] == [("@keys", 1), ("@keys", 2)]


def test_history_tells_who_changed_which_key_and_no_hash(store: Store) -> None:
    store.keys.put("one", ADA, who="eve")
    store.keys.drop("one", who="bob")
    told = store.history.of("@keys")
    assert [(h["action"], h["key"], h["who"], h["revision"]) for h in told] == [
        ("drop-key", "one", "bob", 2),
        ("put-key", "one", "eve", 1),
    ]
    assert ADA["hash"] not in str(told)


def test_replicas_that_have_metrics_say_where(store: Store) -> None:
    store.replicas.report("one", 3, "10.0.0.7:9100")
    store.replicas.report("two", 3, "[fd00::7]:9100")
    store.replicas.report("three", 3)
    found = {replica: (report.revision, report.address) for replica, report in store.replicas.reports().items()}
    assert found == {"one": (3, "10.0.0.7:9100"), "two": (3, "[fd00::7]:9100"), "three": (3, "")}
