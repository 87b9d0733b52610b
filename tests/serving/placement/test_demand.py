"""How much tasks are asked for: rates that fade, and what all replicas together tell."""

from __future__ import annotations

import math

import pytest

from serving.placement.demand import HALF_LIFE, Rates, demand, work_of
from serving.placement.ledger import Demand
from serving.placement.plan import Homes, Placement


def asked(rates: Rates, task: str, a_second: int, start: float, seconds: int) -> float:
    """Ask a task evenly; returns the time afterwards."""
    for i in range(a_second * seconds):
        rates.note(task, 2.0, start + i / a_second)
    return start + seconds


@pytest.mark.parametrize("seconds", [10, 60, 600])
def test_a_rate_is_the_true_one_however_long_it_was_counted(seconds: int) -> None:
    rates = Rates()
    now = asked(rates, "spam", 10, 1000.0, seconds)
    assert rates.rates(now)["spam"] == pytest.approx(20.0, rel=0.02)


def test_a_rate_halves_in_its_half_life_and_is_forgotten_at_last() -> None:
    rates = Rates()
    now = asked(rates, "spam", 10, 0.0, 1200)
    assert rates.rates(now + HALF_LIFE)["spam"] == pytest.approx(10.0, rel=0.02)
    assert rates.rates(now + 20 * HALF_LIFE) == {}


def test_one_request_to_a_young_replica_is_no_storm() -> None:
    rates = Rates()
    rates.note("spam", 1.0, 5.0)
    assert rates.rates(5.0)["spam"] <= 0.25


def test_tasks_are_counted_apart() -> None:
    rates = Rates()
    asked(rates, "spam", 10, 0.0, 60)
    now = asked(rates, "topic", 2, 0.0, 60)
    found = rates.rates(now)
    assert found["spam"] == pytest.approx(5 * found["topic"], rel=0.05)


def test_a_long_text_is_more_work_than_a_short_one() -> None:
    assert work_of(0) == 1
    assert work_of(640) == 11


def test_rates_are_the_sum_and_bytes_the_most_that_replicas_tell() -> None:
    told = [{"spam": (1.0, 100), "topic": (2.0, 0)}, {"spam": (3.0, 300), "gone": (9.0, 500)}]
    found = demand(["spam", "topic", "new"], told, None, 15.0)
    assert found == {"spam": Demand(4.0, 300), "topic": Demand(2.0, 400), "new": Demand(0.0, 400)}


def test_bytes_that_nobody_knows_are_none() -> None:
    assert demand(["spam"], [], None, 15.0) == {"spam": Demand(0.0, 0)}


def test_what_a_lost_replica_was_asked_for_fades_and_is_not_forgotten_at_once() -> None:
    before = Placement(1, ("a",), {"spam": Homes(("a",), rate=8.0)})
    assert demand(["spam"], [{}], before, HALF_LIFE)["spam"].rate == pytest.approx(4.0)
    assert demand(["spam"], [{"spam": (7.0, 1)}], before, HALF_LIFE)["spam"].rate == 7.0
    assert demand(["spam"], [{}], before, 30 * HALF_LIFE)["spam"].rate == 0.0


def test_rates_that_are_negligible_are_none() -> None:
    rates = Rates()
    rates.note("spam", 1.0, 0.0)
    rates.note("topic", 1.0, 2000.0)
    assert set(rates.rates(2000.0)) == {"topic"}
    assert not math.isnan(rates.rates(2000.0)["topic"])


def test_a_task_that_becomes_popular_is_known_within_seconds_and_not_believed_for_one_request() -> None:
    rates = Rates()
    for second in range(600):
        rates.note("steady", 1.0, float(second))
    assert rates.rates(600.0)["steady"] == pytest.approx(1.0, rel=0.1)
    rates.note("steady", 1.0, 600.5)
    assert rates.rates(600.5)["steady"] < 1.2
    for tenth in range(150):
        rates.note("steady", 1.0, 600.5 + tenth / 10)
    assert rates.rates(615.5)["steady"] > 3.0, "10 a second for 15 seconds"
