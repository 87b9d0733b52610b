"""The placement in a real Valkey: who may write it, who follows it, and what replicas and proxies say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
import zstandard

from serving.errors import ForeignPlacementError, StoreError
from serving.placement.plan import Homes, Placement
from serving.store import Store
from serving.store.placements import Asked, Load
from serving.store.urls import connect

PLACED = Placement(3, ("a", "b"), {"spam": Homes(("a",), "b", 2, 1.5)}, moves=7)


@pytest.fixture
def raw(store_url: str) -> Any:
    """A client of our own, to look at keys and to damage them."""
    return connect(store_url)


@pytest.fixture
def key(namespace: str) -> str:
    return f"ken:{{{namespace}}}:placement"


def frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def test_of_many_that_would_lead_at_once_one_does(store: Store) -> None:
    with ThreadPoolExecutor(8) as at_once:
        leading = list(at_once.map(lambda name: store.placements.lead(name, 30), map(str, range(40))))
    assert leading.count(True) == 1
    leader = str(leading.index(True))
    assert store.placements.lead(leader, 30)
    assert not store.placements.lead("another", 30)


def test_a_lease_ends_with_its_time_or_when_it_is_given_up(store: Store, raw: Any, namespace: str) -> None:
    lease = f"ken:{{{namespace}}}:placement-leader"
    assert store.placements.lead("a", 30)
    assert 0 < raw.pttl(lease) <= 30_000
    store.placements.retire("b")
    assert not store.placements.lead("b", 30)
    store.placements.retire("a")
    assert store.placements.lead("b", 30)


def test_what_the_leader_writes_is_read(store: Store) -> None:
    assert store.placements.read() is None
    store.placements.lead("a", 30)
    assert store.placements.write(PLACED, "a")
    assert store.placements.read() == store.placements.read(after=2) == PLACED
    assert store.placements.read(after=3) is None


def test_nothing_is_written_without_the_lease_or_after_it_is_lost(store: Store, raw: Any, namespace: str) -> None:
    assert not store.placements.write(PLACED, "a")
    store.placements.lead("a", 30)
    raw.delete(f"ken:{{{namespace}}}:placement-leader")  # as if its time were over
    assert not store.placements.write(PLACED, "a")
    store.placements.lead("b", 30)
    assert not store.placements.write(PLACED, "a")
    assert store.placements.read() is None


def test_an_epoch_that_is_not_higher_is_not_written(store: Store) -> None:
    store.placements.lead("a", 30)
    store.placements.write(PLACED, "a")
    assert not store.placements.write(Placement(3, ("c",)), "a")
    assert not store.placements.write(Placement(2, ("c",)), "a")
    assert store.placements.read() == PLACED
    assert store.placements.write(Placement(4, ("c",)), "a")
    assert store.placements.read() == Placement(4, ("c",))


def test_a_store_that_was_restored_is_followed_to_its_lower_epoch(store: Store) -> None:
    store.placements.lead("a", 30)
    store.placements.write(PLACED, "a")
    assert store.placements.read(after=9) == PLACED


def test_a_placement_that_is_cleared_is_followed_by_nobody(store: Store) -> None:
    store.placements.lead("a", 30)
    store.placements.clear("a")
    assert store.placements.epoch() is None
    store.placements.write(PLACED, "a")
    store.placements.clear("a")
    store.placements.clear("a")
    assert store.placements.read(after=3) == Placement(4)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no frame",
        frame(b"no json"),
        frame(b"[]"),
        frame(b"{}"),
        frame(b'{"epoch": 9, "names": [], "replicas": [0], "tasks": {}, "moves": 0}'),
        frame(b'{"epoch": 9, "names": [], "replicas": [], "tasks": [], "moves": 0}'),
        frame(b'{"epoch": 9, "names": ["a"], "replicas": [0], "tasks": {"t": 5}, "moves": 0}'),
    ],
)
def test_what_is_no_placement_is_refused_in_words_and_replaced(store: Store, raw: Any, key: str, body: bytes) -> None:
    raw.hset(key, mapping={"epoch": 2, "body": body})
    with pytest.raises(ForeignPlacementError, match="no usable placement"):
        store.placements.read()
    store.placements.lead("a", 30)
    assert store.placements.write(PLACED, "a")
    assert store.placements.read() == PLACED


def test_a_placement_that_would_fill_the_memory_is_not_unpacked(store: Store, raw: Any, key: str) -> None:
    huge = frame(b" " * (65 << 20))
    assert len(huge) < 10_000
    raw.hset(key, mapping={"epoch": 2, "body": huge})
    with pytest.raises(StoreError, match="expected at most"):
        store.placements.read()


def test_a_key_of_another_type_is_refused_in_words_and_replaced(store: Store, raw: Any, key: str) -> None:
    raw.set(key, "something else")
    with pytest.raises(ForeignPlacementError, match="no hash"):
        store.placements.read()
    store.placements.lead("a", 30)
    assert store.placements.write(PLACED, "a")
    assert store.placements.read() == PLACED


def test_only_the_leader_removes_what_is_no_placement(store: Store, raw: Any, key: str) -> None:
    raw.hset(key, mapping={"epoch": 99, "body": b"no frame"})
    store.placements.lead("a", 30)
    store.placements.remove("b")
    assert raw.exists(key)
    store.placements.remove("a")
    assert not raw.exists(key)


def test_a_placement_whose_epoch_is_not_that_of_its_key_is_refused(store: Store, raw: Any, key: str) -> None:
    raw.hset(key, mapping={"epoch": 4, "body": frame(PLACED.dumps())})
    with pytest.raises(ForeignPlacementError, match="in one place"):
        store.placements.read()


def test_an_epoch_that_is_no_number_is_refused_in_words(store: Store, raw: Any, key: str) -> None:
    raw.hset(key, mapping={"epoch": "soon", "body": b""})
    with pytest.raises(StoreError, match="soon"):
        store.placements.read()


def test_loads_are_read_as_they_were_reported(store: Store) -> None:
    load = Load("serve-1", True, 3, 12, 1 << 30, {"spam": Asked(1.5, 4096), "topic": Asked(0.25)}, ("spam", "topic"))
    store.placements.report("a", load)
    store.placements.report("b", Load())
    assert store.placements.loads() == {"a": load, "b": Load()}
    store.placements.retire("a")
    assert store.placements.loads() == {"b": Load()}


def test_at_most_a_thousand_held_tasks_are_named(store: Store) -> None:
    store.placements.report("a", Load(held=tuple(map(str, range(2000)))))
    assert store.placements.loads()["a"].held == tuple(map(str, range(1000)))


def later(raw: Any, key: str, name: str, seconds: float) -> None:
    """Make a report some seconds older."""
    when, text = raw.hget(key, name).split(b" ", 1)
    raw.hset(key, name, b"%f %s" % (float(when) - seconds, text))


def test_who_is_silent_for_long_does_not_count(store: Store, raw: Any, namespace: str) -> None:
    for name in ("well", "silent"):
        store.placements.report(name, Load(seen=1))
        store.placements.report_proxy(name, 1, "")
    later(raw, f"ken:{{{namespace}}}:loads", "silent", 16)
    later(raw, f"ken:{{{namespace}}}:proxies", "silent", 16)
    assert set(store.placements.loads()) == set(store.placements.proxies()) == {"well"}


def test_a_proxys_report_has_its_age_and_its_trouble(store: Store, raw: Any, namespace: str) -> None:
    store.placements.report_proxy("node-1", 3, "")
    store.placements.report_proxy("node-2", 0, "the socket does not answer")
    later(raw, f"ken:{{{namespace}}}:proxies", "node-2", 5)
    found = store.placements.proxies()
    assert (found["node-1"].epoch, found["node-1"].trouble) == (3, "")
    assert (found["node-2"].epoch, found["node-2"].trouble) == (0, "the socket does not answer")
    assert 5 <= found["node-2"].age < 10


@pytest.mark.parametrize(
    "report",
    [
        b"",
        b"no time",
        b"1e18",
        b"1e18 no json",
        b"1e18 []",
        b"1e18 {}",
        *(
            b"1e18 " + orjson.dumps({"serve": "", "ready": True, "seen": 0, "in_flight": 0, "room": 1} | wrong)
            for wrong in (
                {"tasks": [], "held": []},
                {"tasks": {"t": [1]}, "held": []},
                {"tasks": {"t": [-1, 0]}, "held": []},
                {"tasks": {}, "held": 7},
                {"tasks": {}, "held": [], "room": -5},
                {"tasks": {}, "held": [], "seen": None},
            )
        ),
    ],
)
def test_reports_that_cannot_be_read_are_left_out(store: Store, raw: Any, namespace: str, report: bytes) -> None:
    store.placements.report("well", Load())
    store.placements.report_proxy("well", 1)
    for kind in ("loads", "proxies"):
        raw.hset(f"ken:{{{namespace}}}:{kind}", "strange", report)
    assert set(store.placements.loads()) == set(store.placements.proxies()) == {"well"}
