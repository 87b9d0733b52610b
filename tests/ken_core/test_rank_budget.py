"""How a budget is shared out between tensors: made-up energies, no tensors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ken_core.rank_budget import Offer, with_energy, within_bytes


def offer(*energies: float, cost: float = 1.0) -> Offer:
    return Offer(np.array(sorted(energies, reverse=True)), cost)


def counts(chosen):
    return {name: choice.count for name, choice in chosen.items()}


def test_parts_of_equal_cost_are_taken_by_one_threshold():
    offers = {"a": {"factors": offer(9, 4, 1)}, "b": {"factors": offer(8, 7, 2)}}
    assert counts(within_bytes(offers, 4)) == {"a": 2, "b": 2}
    assert counts(within_bytes(offers, 1)) == {"a": 1, "b": 0}
    assert counts(within_bytes(offers, 0)) == {"a": 0, "b": 0}
    assert counts(within_bytes(offers, 100)) == {"a": 3, "b": 3}


def test_a_costly_part_must_be_worth_its_bytes():
    offers = {"layer": {"factors": offer(5, 4, 3)}, "embedding": {"factors": offer(50, cost=20)}}
    assert counts(within_bytes(offers, 20)) == {"layer": 3, "embedding": 0}


def test_a_tensor_has_the_form_that_is_worth_most():
    few_rows = {"factors": offer(*[1.0] * 8, cost=10), "rows": offer(4.0, 4.0, cost=2)}
    (choice,) = within_bytes({"embedding": few_rows}, 4).values()
    assert (choice.form, choice.count) == ("rows", 2)
    one_direction = {"factors": offer(8.0, cost=10), "rows": offer(*[0.1] * 80, cost=2)}
    (choice,) = within_bytes({"embedding": one_direction}, 20).values()
    assert (choice.form, choice.count) == ("factors", 1)


@pytest.mark.parametrize("budget", range(40, 200, 10))
def test_a_tensor_that_changes_its_form_leaves_less_than_a_part_over(budget):
    """At one threshold, the embedding goes from a few directions of 10 bytes to all 60 rows of 2 bytes."""
    offers = {
        "embedding": {
            "factors": offer(*np.geomspace(50, 2, 12), cost=10),
            "rows": offer(*np.linspace(4, 3.9, 60), cost=2),
        },
        "layer": {"factors": offer(*np.linspace(3, 0.4, 20))},
    }
    chosen = within_bytes(offers, budget)
    used, kept = (sum(getattr(c, field) for c in chosen.values()) for field in ("nbytes", "energy"))
    assert used <= budget
    assert used > budget - 11 or all(c.count == len(offers[n][c.form].energies) for n, c in chosen.items())
    assert sum(choice.nbytes for choice in with_energy(offers, kept).values()) <= used


energies = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=5)
tensors = st.lists(st.tuples(energies, st.floats(0.5, 20)), min_size=1, max_size=4)


def offers_of(drawn):
    return {str(i): {"factors": offer(*es, cost=cost)} for i, (es, cost) in enumerate(drawn)}


@given(tensors, st.floats(0, 100))
def test_bytes_are_never_exceeded_and_nothing_else_in_as_few_keeps_more(drawn, budget):
    offers = offers_of(drawn)
    chosen = within_bytes(offers, budget)
    used, kept = (sum(getattr(c, field) for c in chosen.values()) for field in ("nbytes", "energy"))
    assert used <= budget
    for other in itertools.product(*(range(len(o["factors"].energies) + 1) for o in offers.values())):
        parts = [(o["factors"], n) for o, n in zip(offers.values(), other, strict=True)]
        if sum(o.cost * n for o, n in parts) <= used:
            assert sum(o.energies[:n].sum() for o, n in parts) <= kept * (1 + 1e-5)


@given(tensors, st.floats(0.01, 1))
def test_the_energy_asked_for_is_kept(drawn, share):
    offers = offers_of(drawn)
    total = sum(o["factors"].energies.sum() for o in offers.values())
    chosen = with_energy(offers, share * total)
    assert sum(c.energy for c in chosen.values()) >= share * total * (1 - 1e-12)


def test_no_more_is_kept_than_the_energy_takes():
    offers = {"a": {"factors": offer(6, 3, 1)}}
    assert counts(with_energy(offers, 6)) == {"a": 1}
    assert counts(with_energy(offers, 6.5)) == {"a": 2}
    assert counts(with_energy(offers, 10)) == {"a": 3}


def test_tensors_that_did_not_change_keep_nothing():
    offers = {"a": {"factors": offer(0.0, 0.0)}, "b": {"factors": offer(2.0)}}
    assert counts(within_bytes(offers, 1)) == {"a": 0, "b": 1}


@pytest.mark.parametrize("budget", [0, 5])
def test_where_nothing_changed_there_is_nothing_to_choose(budget):
    assert counts(within_bytes({"a": {"factors": offer(0.0)}}, budget)) == {"a": 0}
