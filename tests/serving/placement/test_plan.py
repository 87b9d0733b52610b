"""A placement survives the store, and what is no placement is refused."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.placement.plan import Homes, Placement

NAMES = st.sampled_from([f"node-{i}" for i in range(5)])


@st.composite
def some_homes(draw: st.DrawFn) -> Homes:
    homes = tuple(draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)))
    second = draw(st.sampled_from([None, *sorted({"node-7", "node-8"})]))
    rate = float(draw(st.integers(0, 9999)))
    arrivals = tuple(draw(st.lists(st.integers(0, 99), min_size=len(homes), max_size=len(homes))))
    return Homes(homes, second, max(arrivals), rate, draw(st.sampled_from([(), arrivals])))


@given(
    epoch=st.integers(0, 2**40),
    replicas=st.lists(NAMES, unique=True),
    tasks=st.dictionaries(st.text(min_size=1, max_size=9), some_homes(), max_size=9),
    moves=st.integers(0, 2**40),
)
def test_a_placement_is_read_as_it_was_written(epoch, replicas, tasks, moves):
    placement = Placement(epoch, tuple(sorted(replicas)), tasks, moves)
    assert Placement.loads(placement.dumps()) == placement


def test_rates_are_written_with_four_digits():
    written = Placement(1, ("a",), {"trec": Homes(("a",), rate=1 / 3)}).dumps()
    assert Placement.loads(written).tasks["trec"].rate == 0.3333


WRITTEN = orjson.loads(Placement(1, ("a", "b"), {"trec": Homes(("a",), "b", 1, 2.0, (1,))}).dumps())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        orjson.dumps(WRITTEN | {"tasks": []}),
        orjson.dumps(WRITTEN | {"tasks": {"trec": []}}),
        orjson.dumps(WRITTEN | {"tasks": {"trec": [[2], None, 1, 2.0]}}),
        orjson.dumps(WRITTEN | {"tasks": {"trec": [["a"], None, 1, 2.0]}}),
        orjson.dumps(WRITTEN | {"tasks": {"trec": [[0], 1, "one", 2.0]}}),
        orjson.dumps(WRITTEN | {"tasks": {"trec": [[0], 1, 1, 2.0, [1, 2]]}}),
        orjson.dumps(WRITTEN | {"names": None}),
        orjson.dumps(WRITTEN | {"epoch": "x"}),
    ],
)
def test_what_is_no_placement_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the parser's
        Placement.loads(text)


def test_a_replica_holds_its_homes_before_what_it_is_second_home_of_and_the_busy_before_the_idle():
    tasks = {
        "idle": Homes(("a",), "b", rate=0.0),
        "busy": Homes(("b",), "a", rate=9.0),
        "some": Homes(("a", "b"), rate=2.0),
    }
    placed = Placement(1, ("a", "b", "c"), tasks).placed
    assert placed == {"a": ("some", "idle", "busy"), "b": ("busy", "some", "idle"), "c": ()}


def test_ranks_tell_homes_second_homes_and_others():
    placement = Placement(1, ("a", "b", "c"), {"trec": Homes(("a",), "b")})
    ranks = [placement.rank("trec", name) for name in "abc"]
    assert (ranks, placement.rank("other", "a")) == ([0, 1, None], None)


def test_each_home_has_an_arrival_of_its_own_or_the_task_s():
    assert Homes(("a", "b"), since=4, arrivals=(2, 4)).arrival("a") == 2
    assert Homes(("a", "b"), since=4).arrival("a") == 4
