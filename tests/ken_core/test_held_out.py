from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ken_core.examples import Example
from ken_core.held_out import hold_out


def examples(**sizes: int) -> list[Example]:
    return [Example(f"{label} {i}", label) for label, size in sizes.items() for i in range(size)]


def test_each_label_is_held_out_in_its_share():
    train, held = hold_out(examples(rare=20, common=180), 0.1)
    assert Counter(e.label for e in held) == {"rare": 2, "common": 18}
    assert len(train) == 180


def test_the_same_seed_holds_out_the_same_and_another_seed_others():
    found = examples(one=50, two=50)
    assert hold_out(found, 0.1, 3) == hold_out(found, 0.1, 3)
    assert hold_out(found, 0.1, 3) != hold_out(found, 0.1, 4)


@pytest.mark.parametrize(("sizes", "share"), [({"a": 2, "b": 2}, 0.1), ({"a": 50, "b": 50}, 0.0), ({}, 0.5)])
def test_nothing_is_held_out_of_a_few_examples_or_with_no_share(sizes, share):
    found = examples(**sizes)
    assert hold_out(found, share) == (found, [])


def test_a_label_with_one_example_is_trained_on():
    train, held = hold_out(examples(once=1, often=19), 0.9)
    assert {e.label for e in train} == {"once", "often"}
    assert {e.label for e in held} == {"often"}


@given(
    sizes=st.dictionaries(st.integers(0, 9), st.integers(1, 40), max_size=8),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 5),
)
def test_both_parts_are_all_examples_in_their_order_and_no_label_is_left_untrained(sizes, share, seed):
    found = [Example(f"{label} {i}", label) for label, size in sizes.items() for i in range(size)]
    train, held = hold_out(found, share, seed)
    assert sorted([*train, *held], key=found.index) == found
    assert [train, held] == [sorted(part, key=found.index) for part in (train, held)]
    assert {e.label for e in train} == set(sizes)
    assert len(held) <= round(len(found) * share)
    counts = Counter(e.label for e in held)
    assert all(abs(counts[label] - min(size * share, size - 1)) <= 1 for label, size in sizes.items())
