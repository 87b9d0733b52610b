"""The keys used most have labels of their own, and no more keys than there are places."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.telemetry.label_budget import LabelBudget

USES = st.lists(st.sampled_from("abcdefgh"), max_size=120)
PLACES = st.integers(1, 4)
HALF_LIVES = st.floats(1, 200)


def slowly(uses: list[str], places: int, half_life: float) -> list[set[str]]:
    """The keys that have a place after each use, from counts that are computed anew each time."""
    own: set[str] = set()
    history = []
    for now, key in enumerate(uses):
        counts: Counter[str] = Counter()
        for when, used in enumerate(uses[: now + 1]):
            counts[used] += 0.5 ** ((now - when) / half_life)  # type: ignore[assignment]
        if key not in own:
            least = min(own, key=counts.__getitem__, default=key)
            if len(own) < places:
                own.add(key)
            elif counts[key] > 1.5 * counts[least]:
                own = own - {least} | {key}
        history.append(set(own))
    return history


@given(USES, PLACES, HALF_LIVES)
def test_a_place_goes_to_who_is_used_clearly_more_than_the_least_used_that_has_one(
    uses: list[str], places: int, half_life: float
) -> None:
    left: list[str] = []
    labels: LabelBudget[str] = LabelBudget(places, left.append, half_life)
    own: set[str] = set()
    for key, expected in zip(uses, slowly(uses, places, half_life), strict=True):
        gone = len(left)
        assert labels.use(key) == (key in expected)
        assert len(left[gone:]) == len(own - expected)
        assert set(left[gone:]) == own - expected
        assert len(labels) == len(expected) <= places
        own = expected


@settings(max_examples=25)
@given(USES, PLACES, st.randoms(use_true_random=False))
def test_the_most_used_keys_have_the_places_whatever_was_before(
    before: list[str], places: int, rng: random.Random
) -> None:
    labels: LabelBudget[str] = LabelBudget(places, lambda key: None, half_life=100)
    for key in before:
        labels.use(key)
    most_used = [f"hot-{n}" for n in range(places)]
    for _ in range(50):
        for key in rng.sample([*most_used * 4, *"abcdefgh"], 4 * places + 8):
            labels.use(key)
    assert all(labels.use(key) for key in most_used)


def test_equally_used_keys_do_not_push_each_other_out() -> None:
    left: list[str] = []
    labels: LabelBudget[str] = LabelBudget(2, left.append, half_life=100)
    for key in "abcd" * 500:
        labels.use(key)
    assert left == []


def test_places_that_were_dropped_are_free_and_nobody_is_told() -> None:
    left: list[str] = []
    labels: LabelBudget[str] = LabelBudget(2, left.append)
    for key in "aaabbb":
        labels.use(key)
    assert not labels.use("c")
    labels.drop(lambda key: key == "a")
    assert [labels.use(key) for key in "bcd"] == [True, True, False]
    assert left == []


def test_who_came_to_a_free_place_is_pushed_out_by_little() -> None:
    left: list[str] = []
    labels: LabelBudget[str] = LabelBudget(2, left.append)
    for key in "ab" * 20 + "c":
        labels.use(key)
    labels.drop(lambda key: key == "a")
    for key in "deee":
        labels.use(key)
    assert left == ["d"]
