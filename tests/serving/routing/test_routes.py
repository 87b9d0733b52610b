"""Routes alone: shares, keys that stay, and what is no route."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidInputError
from serving.routing.routes import MOST_WEIGHT, Route, check_route

names = st.sampled_from(["live", "canary", "shadow", "a" * 64, "b" * 64])
routes = st.builds(Route, st.dictionaries(names, st.integers(1, 20), min_size=1), st.none() | names)
any_weight = st.integers(1, MOST_WEIGHT)
keys = st.lists(st.text(), min_size=1, max_size=50)


def assert_shares(route: Route, chosen: list[str]) -> None:
    """Within six standard deviations of what the weights say."""
    found, total = Counter(chosen), sum(route.weights.values())
    assert set(found) <= set(route.weights)
    for target, weight in route.weights.items():
        share = weight / total
        spread = math.sqrt(len(chosen) * share * (1 - share))
        assert abs(found[target] - len(chosen) * share) <= 6 * spread, target


@given(routes, st.text(max_size=5))
def test_in_the_long_run_keys_fall_as_the_weights_say(route: Route, task: str) -> None:
    assert_shares(route, [route.choose(f"user-{i}", task) for i in range(1000)])


@given(routes)
def test_requests_without_a_key_fall_as_the_weights_say(route: Route) -> None:
    assert_shares(route, [route.choose(None, "task") for _ in range(1000)])


@given(routes, keys)
def test_a_key_stays_in_whatever_order_the_route_is_written(route: Route, keys: list[str]) -> None:
    turned = Route(dict(reversed(route.weights.items())))
    for key in keys:
        assert turned.choose(key, "task") == route.choose(key, "task") == route.choose(key, "task")


@given(st.dictionaries(names, any_weight, min_size=2), st.data(), keys)
def test_raising_one_weight_moves_keys_only_towards_it(
    weights: dict[str, int], data: st.DataObject, keys: list[str]
) -> None:
    raised = data.draw(st.sampled_from(sorted(weights)))
    more = data.draw(st.integers(weights[raised], MOST_WEIGHT))
    for key in keys:
        before, after = (Route(w).choose(key, "task") for w in (weights, weights | {raised: more}))
        assert after in (before, raised)


@given(st.dictionaries(names, any_weight, min_size=2), st.data(), keys)
def test_without_a_target_only_its_own_keys_move(weights: dict[str, int], data: st.DataObject, keys: list[str]) -> None:
    gone = data.draw(st.sampled_from(sorted(weights)))
    rest = Route({t: w for t, w in weights.items() if t != gone})
    for key in keys:
        before = Route(weights).choose(key, "task")
        assert before == gone or rest.choose(key, "task") == before


def test_keys_of_different_tasks_fall_independently() -> None:
    route = Route({"live": 1, "canary": 1})
    same = sum(route.choose(f"user-{i}", "spam") == route.choose(f"user-{i}", "mood") for i in range(1000))
    assert 400 < same < 600


def test_a_key_keeps_its_target_from_one_release_to_the_next() -> None:
    route = Route({"live": 90, "canary": 10})
    on_canary = [i for i in range(60) if route.choose(f"user-{i}", "spam") == "canary"]
    assert on_canary == [13, 56]


@given(routes)
def test_a_route_goes_through_json_unchanged(route: Route) -> None:
    assert check_route(route.plain()) == route


def test_a_route_of_a_shadow_alone_sends_everything_to_live() -> None:
    assert check_route({"shadow": "canary"}) == Route({"live": 1}, "canary")


def test_a_route_kept_before_there_were_shadows_has_none() -> None:
    route = check_route({"weights": {"live": 90, "canary": 10}})
    assert route.shadow is None
    assert route.plain() == {"weights": {"live": 90, "canary": 10}}


@pytest.mark.parametrize(
    ("plain", "named"),
    [
        (None, "is no route"),
        ({"live": 90}, "is no route"),
        ({"weights": [["live", 1]]}, "is no route"),
        ({"weights": {"live": 1}, "sticky": True}, "is no route"),
        ({}, "is no route"),
        ({"shadow": None}, "is no route"),
        ({"weights": None, "shadow": "canary"}, "is no route"),
        ({"weights": {"live": 1}, "shadow": ["canary"]}, "is no route"),
        ({"weights": {}, "shadow": "canary"}, "needs a target"),
        ({"shadow": "@route"}, "shadow '@route' is not usable"),
        ({"weights": {}}, "needs a target"),
        ({"weights": {"live": 0}}, "weight of 'live' is 0"),
        ({"weights": {"live": 90, "canary": -1}}, "weight of 'canary' is -1"),
        ({"weights": {"live": 0.5}}, "weight of 'live' is 0.5"),
        ({"weights": {"live": True}}, "weight of 'live' is True"),
        ({"weights": {"live": "90"}}, "weight of 'live' is '90'"),
        ({"weights": {"live": MOST_WEIGHT + 1}}, "whole numbers from 1 to 1000000"),
        ({"weights": {"@revision": 1}}, "target '@revision' is not usable"),
    ],
)
def test_what_is_no_route_is_refused_with_an_example(plain: Any, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        check_route(plain)
