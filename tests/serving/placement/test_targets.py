"""Whom proxies ask, from a placement and from what replicas say of themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.placement.choices import BUCKETS, bucket_key, bucket_of, of_servers
from serving.placement.plan import Homes, Placement
from serving.placement.targets import targets

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)


def asked(homes: Homes, **seen: int) -> tuple[tuple[str, ...], ...] | None:
    return targets(Placement(9, NAMES, {"news": homes}), seen).get("news")


def test_a_home_is_asked_first_and_the_second_home_takes_over() -> None:
    assert asked(Homes(("a",), "b", 3), a=3, b=3, c=3) == (("a", "b"),)


def test_a_home_that_has_not_loaded_the_task_comes_behind_the_second_home() -> None:
    assert asked(Homes(("a",), "b", 4), a=3, b=3, c=3) == (("b", "a"),)


def test_a_home_that_is_lost_is_left_out() -> None:
    assert asked(Homes(("a",), "b", 3), b=3, c=3) == (("b",),)
    assert asked(Homes(("a",), "b", 3), a=3, c=3) == (("a",),)
    assert asked(Homes(("a",), "b", 3), c=3, d=3) is None, "its bucket is asked"


def test_each_of_several_homes_has_another_one_behind_it() -> None:
    assert asked(Homes(("a", "b", "c"), "d", 3), a=3, b=3, c=3, d=3) == (("a", "b"), ("b", "c"), ("c", "a"))
    assert asked(Homes(("a", "b"), "d", 3), a=3, d=3) == (("a", "d"),)


def test_of_several_homes_only_those_are_asked_that_have_loaded_the_task() -> None:
    assert asked(Homes(("a", "b"), "d", 4), a=4, b=3, d=3) == (("a", "d"),)


def test_a_task_that_only_unready_homes_have_is_asked_there() -> None:
    assert asked(Homes(("a",), None, 4), a=3, b=3) == (("a",),)


def test_every_bucket_has_a_replica_and_another_one() -> None:
    found = targets(Placement(1, NAMES), dict.fromkeys(NAMES, 1))
    assert len(found) == BUCKETS
    assert {len(set(choices[0])) for choices in found.values()} == {2}
    assert {choices[0][0] for choices in found.values()} == set(NAMES)


def test_few_buckets_change_when_a_replica_goes() -> None:
    before = targets(Placement(1, NAMES), dict.fromkeys(NAMES, 1))
    after = targets(Placement(1, NAMES), dict.fromkeys(NAMES[:3], 1))
    moved = [key for key in before if before[key][0][0] != after[key][0][0]]
    assert {before[key][0][0] for key in moved} == {"d"}
    assert all(after[key][0][0] == before[key][0][1] for key in moved)


def test_without_a_replica_nobody_is_asked() -> None:
    assert targets(Placement(1, NAMES, {"news": Homes(("a",))}), {}) == {}


def test_servers_that_a_proxy_does_not_know_are_left_out() -> None:
    found = of_servers({"news": (("a", "b"), ("b", "a")), "spam": (("c",),)}, {"b": "server-b"})
    assert found == {"news": (("server-b",), ("server-b",))}


def test_a_bucket_is_a_number_of_its_own() -> None:
    assert {bucket_of(f"task-{i}") for i in range(10_000)} == set(range(BUCKETS))
    assert bucket_key(7) == "@7"


@given(
    st.lists(names, min_size=1, unique=True).map(tuple),
    st.one_of(st.none(), names),
    st.dictionaries(names, st.integers(0, 5)),
    st.integers(0, 5),
)
def test_whoever_is_asked_is_there_and_nobody_twice(
    homes: tuple[str, ...], second: str | None, seen: dict[str, int], since: int
) -> None:
    second = None if second in homes else second
    choices = asked(Homes(homes, second, since), **seen)
    there = [name for name in (*homes, *filter(None, [second])) if name in seen]
    assert bool(choices) == bool(there)
    for choice in choices or ():
        assert set(choice) <= set(there)
        assert len(set(choice)) == len(choice)
        assert len(choice) == min(2, len(there))
        assert seen[choice[0]] >= since or choice[0] == second or all(seen.get(home, -1) < since for home in homes)
