"""The simulation of many replicas: the same requests find their deltas more often where tasks have homes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.fleet import LOAD, SERVICE, Fleet, Routes, Rule, load_placed, play, seed
from benchmarks.placement import WARM, Popularity, Scale, arrivals, bars, events, ring_order, simulate

SMALL = Scale(replicas=5, tasks=50, slots=15, steps=WARM + 20, kill_every=10, away=4, together=2)


@pytest.fixture(scope="module")
def ways():
    return simulate(SMALL)


def test_every_way_gets_the_same_requests(ways):
    assert len({int(way.fleet.counts.sum()) for way in ways.values()}) == 1


def test_requests_find_their_deltas_where_tasks_have_homes(ways):
    found = {name: way.fleet.on_device for name, way in ways.items()}
    assert found["placement"] > 0.9 > found["random"]
    assert found["placement"] > found["leastconn"]


def test_homes_are_more_even_than_hashes(ways):
    worst = {name: max(way.imbalances) for name, way in ways.items()}
    assert worst["placement"] < worst["consistent hashing"]


def test_the_bars_are_what_was_measured(ways):
    placing = ways["placement"]
    values = {row.name: row.value for row in bars(placing)}
    assert values["bar/simulated"] == placing.fleet.on_device
    assert min(placing.imbalances) <= values["bar/simulated-balance"] <= max(placing.imbalances)


def test_replicas_that_are_killed_come_back():
    killed, back = zip(*(events(SMALL, step) for step in range(SMALL.steps)), strict=True)
    assert [len(some) for some in killed if some].count(2) == 1
    assert list(back[SMALL.away :]) == list(killed[: -SMALL.away])


def test_popularity_drifts_and_stays_a_distribution():
    popularity = Popularity(1000, seed=0)
    before = popularity.shares.copy()
    for step in range(1, 41):
        popularity.drift(step)
    assert popularity.shares.sum() == pytest.approx(1.0)
    assert 0.02 < np.abs(popularity.shares - before).sum() < 1.0


def test_arrivals_are_those_of_their_step():
    times, tasks, work = arrivals(SMALL, Popularity(50, seed=0).shares, 3)
    assert times.size == tasks.size == work.size
    assert 45.0 <= times[0] <= times[-1] <= 60.0
    assert SMALL.rate * 15 * 0.9 < times.size < SMALL.rate * 15 * 1.1


def test_every_task_s_ring_has_every_replica_once():
    assert all(sorted(order) == list(range(5)) for order in ring_order(SMALL).tolist())


# one replica at a time


def routes(rule: Rule, homes: list[list[int]], second: list[int], counts_from: list[list[float]]) -> Routes:
    order = np.array([[0, 1]] * len(homes), np.int32)
    return Routes(rule, order, 1.5, np.array(homes, np.int32), np.array(second, np.int32), np.array(counts_from))


def requests(tasks: list[int], every: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    times = np.arange(1, len(tasks) + 1) * every
    return times, np.array(tasks, np.int32), np.full(len(tasks), SERVICE)


def test_a_delta_is_loaded_once_and_the_least_used_leaves():
    fleet = Fleet(1, 3, 2)
    alone = Routes(
        Rule.IN_ORDER, np.zeros((3, 1), np.int32), 0.0, np.zeros((3, 1), np.int32), np.zeros(3, np.int32), fleet.since
    )
    play(fleet, alone, *requests([0, 0, 1, 2, 0, 1], every=1.0))
    assert fleet.counts.tolist() == [2, 4, 0]  # 1 leaves for 2
    assert np.isfinite(fleet.since[0]).tolist().count(True) == 2
    assert fleet.latency(1.0) == pytest.approx(LOAD + SERVICE, rel=0.03)


def test_a_home_answers_when_it_has_loaded_and_the_second_home_before():
    fleet = Fleet(2, 1, 2)
    play(fleet, routes(Rule.BY_PLACEMENT, [[0]], [1], [[5.0], [np.inf]]), *requests([0] * 9, every=1.0))
    assert fleet.uses.tolist() == [5, 4]  # 5 s is the first second at which the home counts


def test_a_home_that_has_too_much_in_flight_passes_on_to_the_second():
    fleet = Fleet(2, 1, 2)
    fleet.since[:] = 0.0
    seed(0)
    play(fleet, routes(Rule.BY_PLACEMENT, [[0]], [1], [[0.0], [np.inf]]), *requests([0] * 200, every=SERVICE / 100))
    assert fleet.uses.min() > 90


def test_a_lost_home_is_passed_over():
    fleet = Fleet(2, 1, 2)
    fleet.lose(0)
    play(fleet, routes(Rule.BY_PLACEMENT, [[0]], [1], [[0.0], [np.inf]]), *requests([0] * 9, every=1.0))
    assert fleet.uses.tolist() == [0, 9]


def test_placed_tasks_are_loaded_one_after_the_other_and_second_homes_only_where_there_is_room():
    fleet = Fleet(2, 4, 2)
    homes, second = np.array([[0], [0], [1], [1]], np.int32), np.array([1, 1, 0, 0], np.int32)
    ends = load_placed(fleet, 10.0, homes, second, np.array([1.0, 1.0, 1.0, 0.0]))
    assert np.isfinite(fleet.since).tolist() == [[True, True, False, False], [True, False, True, False]]
    assert ends.tolist() == pytest.approx([10 + 2 * LOAD, 10 + 2 * LOAD])
