"""What replicas report to a real Valkey: who has seen a change, who is silent, who is no longer expected."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from serving.store import Store
from serving.store.replicas import Spread
from serving.store.urls import connect


@pytest.fixture
def raw(store_url: str) -> Any:
    """A client of our own, to look at keys and to damage them."""
    return connect(store_url)


def test_waiting_ends_when_every_replica_has_seen_the_revision(store: Store) -> None:
    store.replicas.report("one", 3)
    store.replicas.report("two", 2)
    assert store.replicas.wait(3, 0.05).pending
    store.replicas.report("two", 3)
    assert not store.replicas.wait(3, 0.05).pending
    assert store.replicas.spread(3) == Spread(("one", "two"), (), {})


def test_a_retired_replica_is_not_waited_for(store: Store) -> None:
    store.replicas.report("one", 3)
    store.replicas.report("gone", 1)
    store.replicas.retire("gone")
    assert not store.replicas.wait(3, 0.05).pending


def reported(store: Store, raw: Any, namespace: str, replica: str, seconds: float) -> None:
    """Have a replica report, by the store's clock some seconds ago."""
    store.replicas.report(replica, 3, "10.0.0.7:9100")
    key = f"ken:{{{namespace}}}:reports"
    when, text = raw.hget(key, replica).split(b" ", 1)
    raw.hset(key, replica, b"%f %s" % (float(when) - seconds, text))


def test_a_replica_of_an_earlier_run_of_this_container_is_no_longer_expected(
    store: Store, raw: Any, namespace: str
) -> None:
    """Its process had the number of one that runs now, in another namespace of processes."""
    store.replicas.report("here", 3)
    key = f"ken:{{{namespace}}}:reports"
    raw.hset(key, "before", raw.hget(key, "here").replace(b"pid:[", b"pid:[9"))
    store.replicas.retire_dead()
    assert set(store.replicas.reports()) == {"here"}


def test_a_replica_that_is_out_of_touch_is_not_counted_as_having_seen_anything(
    store: Store, raw: Any, namespace: str
) -> None:
    store.replicas.report("well", 3)
    reported(store, raw, namespace, "silent", 34)
    spread = store.replicas.wait(3, 0.0)
    assert (spread.seen, spread.pending) == (("well",), ("silent",))
    assert 34 <= spread.silent["silent"] < 44
    assert store.replicas.reports()["silent"].address == "10.0.0.7:9100"
    assert not store.replicas.reports()["silent"].in_touch


def test_a_replica_that_has_been_silent_for_very_long_is_no_longer_expected(
    store: Store, raw: Any, namespace: str
) -> None:
    reported(store, raw, namespace, "dead", 4000)
    assert store.replicas.reports() == {}
    assert not raw.exists(f"ken:{{{namespace}}}:reports")


def test_times_are_the_stores_whatever_the_clock_of_a_host_says(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    store.replicas.report("one", 3)
    monkeypatch.undo()
    assert store.replicas.reports()["one"].in_touch


def test_a_replica_whose_process_was_killed_is_no_longer_expected(store: Store, store_url: str, namespace: str) -> None:
    store.replicas.report("here", 3)
    made = "from serving.store import Store; import sys; Store(sys.argv[1], sys.argv[2]).replicas.report('killed', 1)"
    subprocess.run([sys.executable, "-c", made, store_url, namespace], check=True)
    assert set(store.replicas.reports()) == {"here", "killed"}
    store.replicas.retire_dead()
    assert set(store.replicas.reports()) == {"here"}


def test_waiting_for_nobody_ends_at_once(store: Store) -> None:
    assert not store.replicas.wait(99, 0.0).pending
