"""What is learned from measurements: the two parts of a batch's time, in spite of noise, stalls and monotony."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.costs import BatchCost, MixedCost, SwitchCost

MACHINES = {"CPU": (0.005, 0.00013), "GPU": (0.006, 0.000002), "slow": (0.05, 0.003)}


def taught(
    fixed: float, token: float, batches: int, seed: int = 0, noise: float = 0.05, stalls: float = 0.0
) -> BatchCost:
    """The cost of a batch after batches of mixed sizes on a machine that sometimes stalls for 10 times as long."""
    chance, cost = random.Random(seed), BatchCost()
    for _ in range(batches):
        padded = chance.randrange(10, 3000)
        seconds = (fixed + token * padded) * chance.gauss(1, noise) * (10 if chance.random() < stalls else 1)
        cost.learn(padded, seconds)
    return cost


@pytest.mark.parametrize(("fixed", "token"), MACHINES.values(), ids=list(MACHINES))
@pytest.mark.parametrize("seed", range(5))
def test_both_parts_are_learned_from_noisy_measurements(fixed: float, token: float, seed: int) -> None:
    cost = taught(fixed, token, 200, seed)
    for padded in (300, 1500, 3000):
        assert cost.of(padded) == pytest.approx(fixed + token * padded, rel=0.15)


def test_without_noise_both_parts_are_exact() -> None:
    cost = taught(0.006, 0.000002, 500, noise=0.0)
    assert (cost.fixed, cost.token) == (pytest.approx(0.006, rel=1e-3), pytest.approx(0.000002, rel=1e-2))


@pytest.mark.parametrize("seed", range(5))
def test_a_stall_in_fifty_batches_does_not_double_what_is_expected(seed: int) -> None:
    cost = taught(0.005, 0.00013, 300, seed, stalls=0.02)
    assert cost.of(1000) < 2 * (0.005 + 0.13)


def test_batches_of_one_size_give_their_mean_time() -> None:
    cost = BatchCost()
    for _ in range(200):
        cost.learn(400, 0.1)
    assert cost.of(400) == pytest.approx(0.1, rel=1e-3)
    assert cost.usual == pytest.approx(0.1, rel=1e-3)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 100)), max_size=60), st.lists(st.floats(0, 100)))
def test_no_cost_is_ever_negative(batches: list[tuple[int, float]], switches: list[float]) -> None:
    cost, switch = BatchCost(), SwitchCost()
    for padded, seconds in batches:
        cost.learn(padded, seconds)
        assert cost.token >= 0
        assert cost.fixed > 0
    for seconds in switches:
        switch.learn(seconds)
        assert switch.seconds > 0


@pytest.mark.parametrize("seconds", [0.00001, 0.0005, 0.3])
def test_the_switch_is_learned_whatever_it_was_taken_for(seconds: float) -> None:
    switch = SwitchCost()
    for _ in range(60):
        switch.learn(seconds)
    assert switch.seconds == pytest.approx(seconds, rel=0.01)


def test_costs_recover_from_measurements_of_nothing() -> None:
    cost, switch = BatchCost(), SwitchCost()
    for _ in range(5000):
        switch.learn(0.0)
        cost.learn(0, 0.0)
    for _ in range(100):
        switch.learn(0.01)
        cost.learn(100, 0.05)
    assert switch.seconds == pytest.approx(0.01, rel=0.01)
    assert cost.of(100) == pytest.approx(0.05, rel=0.1)


def test_the_share_of_batches_with_a_switch_follows_recent_batches() -> None:
    switch = SwitchCost(seconds=2.0)
    assert (switch.share, switch.a_batch) == (0.0, 0.0)
    for number in range(400):
        switch.note(number % 4 == 0)
    assert switch.share == pytest.approx(0.25, abs=0.05)
    assert switch.a_batch == pytest.approx(0.5, abs=0.1)
    for _ in range(200):
        switch.note(True)
    assert switch.share == pytest.approx(1.0, abs=0.01)


def test_batches_without_corrections_leave_the_cost_of_one_as_it_was() -> None:
    """Tasks that differ in their heads alone cost no multiplications, and tell nothing about them."""
    cost = MixedCost()
    product = cost.product
    for _ in range(20_000):
        cost.learn(0, 2, 0.001)
    assert cost.product == pytest.approx(product)
    assert cost.group == pytest.approx(0.0005, rel=0.05)
    for _ in range(200):
        cost.learn(1e8, 2, 0.021)
    assert cost.of(1e8, 2) == pytest.approx(0.021, rel=0.05)
