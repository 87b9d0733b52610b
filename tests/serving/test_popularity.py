"""Faded use counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.popularity import Popularity


def slowly(uses: list[str], key: str, half_life: float) -> float:
    return sum(0.5 ** ((len(uses) - when) / half_life) for when, used in enumerate(uses, 1) if used == key)


@given(st.lists(st.sampled_from("abc"), max_size=60), st.floats(0.5, 100))
def test_a_use_is_worth_half_after_a_half_life_of_later_uses(uses: list[str], half_life: float) -> None:
    popularity = Popularity(half_life)
    for key in uses:
        popularity.note(key)
    for key in "abcd":
        assert popularity(key) == pytest.approx(slowly(uses, key, half_life), abs=1e-9)


def test_what_was_used_once_long_ago_is_forgotten() -> None:
    popularity = Popularity(half_life=100)
    popularity.note("often")
    for i in range(20_000):
        popularity.note(str(i))
        popularity.note("often")
    assert len(popularity._counts) < 3000
    assert popularity("often") > 50
    assert popularity("0") == 0
