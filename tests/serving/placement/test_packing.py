"""Tasks are packed over replicas by load and bytes, and stay where they are unless there is need."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.placement.choices import bucket_key, bucket_of
from serving.placement.damping import FEWEST, GAIN, SHARE
from serving.placement.packing import Demand, Room, place
from serving.placement.plan import Placement
from serving.placement.rendezvous import order

WIDE = Room(10**12)


def rooms(count: int, nbytes: int = WIDE.nbytes) -> dict[str, Room]:
    return {f"node-{i:02}": Room(nbytes) for i in range(count)}


def zipf(count: int, rate: float, nbytes: int = 10, seed: int = 0) -> dict[str, Demand]:
    """Tasks whose popularity follows Zipf's law, in an order of its own for each seed."""
    weights = [1 / (i + 1) for i in range(count)]
    random.Random(seed).shuffle(weights)
    return {f"task-{i:04}": Demand(rate * w / sum(weights), nbytes) for i, w in enumerate(weights)}


def loads(placement: Placement, tasks: dict[str, Demand]) -> dict[str, float]:
    found = dict.fromkeys(placement.replicas, 0.0)
    for task, homes in placement.tasks.items():
        for home in homes.homes:
            found[home] += tasks[task].rate / len(homes.homes)
    return found


def imbalance(placement: Placement, tasks: dict[str, Demand]) -> float:
    """The largest load in shares of a replica."""
    found = loads(placement, tasks)
    return max(found.values()) * len(found) / sum(found.values())


def held(placement: Placement, tasks: dict[str, Demand]) -> Counter[str]:
    """Bytes of homes by replica."""
    found: Counter[str] = Counter()
    for task, homes in placement.tasks.items():
        for home in homes.homes:
            found[home] += tasks[task].nbytes
    return found


def moved(before: Placement, after: Placement) -> set[str]:
    both = before.tasks.keys() & after.tasks.keys()
    return {task for task in both if set(before.tasks[task].homes) != set(after.tasks[task].homes)}


def places(placement: Placement) -> dict[str, tuple[tuple[str, ...], str | None]]:
    return {task: (homes.homes, homes.second) for task, homes in placement.tasks.items()}


def gained(before: Placement, after: Placement) -> set[str]:
    return {task for task in moved(before, after) if set(after.tasks[task].homes) - set(before.tasks[task].homes)}


def settled(placement: Placement, tasks: dict[str, Demand], replicas: dict[str, Room]) -> Placement:
    """The placement after all that is damped."""
    for _ in range(200):
        after = place(placement, tasks, replicas)
        if after is placement:
            return after
        placement = after
    pytest.fail("placements of the same demands do not come to rest")


any_tasks = st.dictionaries(
    st.sampled_from([f"task-{i}" for i in range(30)]),
    st.builds(Demand, st.floats(0, 100) | st.just(0.0), st.integers(0, 50)),
    max_size=30,
)
any_rooms = st.dictionaries(
    st.sampled_from([f"node-{i}" for i in range(6)]), st.builds(Room, st.integers(0, 300)), min_size=1
)


def is_sound(placement: Placement, tasks: dict[str, Demand], replicas: dict[str, Room]) -> None:
    assert placement.replicas == tuple(sorted(replicas))
    assert placement.tasks.keys() == tasks.keys()
    for task, homes in placement.tasks.items():
        assert len(homes.homes) >= 1
        assert len(set(homes.everywhere)) == len(homes.everywhere)
        assert set(homes.everywhere) <= set(replicas)
        assert (homes.second is None) == (len(homes.homes) == len(replicas))
        assert all(homes.arrival(home) <= homes.since <= placement.epoch for home in homes.homes)
        assert homes.rate == tasks[task].rate


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(any_tasks, any_rooms), min_size=1, max_size=4))
def test_every_task_has_homes_and_another_second_home_whatever_comes_and_goes(history):
    placement = None
    for tasks, replicas in history:
        before, placement = placement, place(placement, tasks, replicas)
        is_sound(placement, tasks, replicas)
        if before is not None and placement.epoch == before.epoch:
            assert places(placement) == places(before)
        elif before is not None:
            assert placement.epoch == before.epoch + 1


@settings(max_examples=150, deadline=None)
@given(any_tasks, any_rooms)
def test_the_same_demands_change_nothing(tasks, replicas):
    placement = place(None, tasks, replicas)
    assert place(placement, tasks, replicas) is placement
    again = place(Placement.loads(placement.dumps()), tasks, replicas)
    assert again.epoch == placement.epoch


@settings(max_examples=100, deadline=None)
@given(any_tasks, any_tasks, any_rooms, any_rooms)
def test_placements_of_the_same_demands_come_to_rest(earlier, tasks, earlier_replicas, replicas):
    placement = place(place(None, earlier, earlier_replicas), tasks, replicas)
    settled(placement, tasks, replicas)


@settings(max_examples=100, deadline=None)
@given(any_tasks, st.integers(1, 6), st.integers(0, 10**6))
def test_bytes_fit_where_they_can_with_a_task_s_bytes_to_spare(tasks, count, seed):
    one_home = {task: Demand(demand.rate / 10**6, demand.nbytes) for task, demand in tasks.items()}
    total, largest = sum(d.nbytes for d in tasks.values()), max((d.nbytes for d in tasks.values()), default=0)
    replicas = rooms(count, -(-total // count) + largest)
    placement = place(None, one_home, replicas)
    assert all(nbytes <= replicas[name].nbytes for name, nbytes in held(placement, one_home).items())
    mixed_up = replace(
        placement,
        tasks={
            t: replace(h, homes=(random.Random(f"{seed}{t}").choice(placement.replicas),), second=None)
            for t, h in placement.tasks.items()
        },
    )
    after = settled(mixed_up, one_home, replicas)
    assert all(nbytes <= replicas[name].nbytes for name, nbytes in held(after, one_home).items())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 300), st.integers(0, 9), st.floats(30, 10_000))
def test_loads_are_even(count, tasks, seed, rate):
    demands = zipf(tasks + 10 * count, rate * count, seed=seed)
    assert imbalance(place(None, demands, rooms(count)), demands) <= 1.15


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(0, 99), st.floats(30, 10_000))
def test_loads_become_even_again_when_popularity_changes(count, seed, rate):
    earlier, demands = zipf(20 * count, rate * count, seed=seed), zipf(20 * count, rate * count, seed=seed + 100)
    after = settled(place(None, earlier, rooms(count)), demands, rooms(count))
    assert imbalance(after, demands) <= 1.2


def test_small_differences_move_nothing():
    demands = zipf(1000, 1000.0)
    placement = place(None, demands, rooms(10))
    chance = random.Random(1)
    noisy = {t: replace(d, rate=d.rate * chance.uniform(0.8, 1.2)) for t, d in demands.items()}
    after = place(placement, noisy, rooms(10))
    assert after.epoch == placement.epoch
    assert moved(placement, after) == set()
    assert after.tasks["task-0000"].rate == noisy["task-0000"].rate


def test_replicas_that_have_next_to_nothing_to_do_are_left_alone():
    demands = zipf(30, 1.0)
    placement = place(None, demands, rooms(3))
    others = zipf(30, 1.0, seed=1)
    assert moved(placement, place(placement, others, rooms(3))) == set()


def test_a_lost_replica_s_tasks_go_to_their_second_homes_and_no_other_moves():
    demands = zipf(1000, 1000.0)
    placement = place(None, demands, rooms(10))
    left = rooms(10)
    del left["node-03"]
    after = place(placement, demands, left)
    its_own = {task for task, homes in placement.tasks.items() if "node-03" in homes.homes}
    alone = {task for task in its_own if placement.tasks[task].homes == ("node-03",)}
    assert alone
    assert moved(placement, after) == its_own
    assert all(after.tasks[task].homes == (placement.tasks[task].second,) for task in alone)
    assert imbalance(after, demands) < 1.2


def test_a_second_home_that_takes_over_counts_as_a_home_at_once():
    demands = zipf(100, 100.0)
    placement = replace(place(None, demands, rooms(4)), epoch=7)
    left = rooms(4)
    del left["node-01"]
    after = place(placement, demands, left)
    assert after.epoch == 8
    alone = [task for task, homes in placement.tasks.items() if homes.homes == ("node-01",)]
    assert alone
    assert {after.tasks[task].since for task in alone} <= {0, 1}


def test_a_lost_replica_s_load_spreads_over_many():
    demands = zipf(2000, 1000.0)
    placement = place(None, demands, rooms(20))
    left = rooms(20)
    del left["node-00"]
    before, after = loads(placement, demands), loads(place(placement, demands, left), demands)
    share = before["node-00"]
    gained = [after[name] - before[name] for name in left]
    assert max(gained) < share / 3
    assert sum(gain > 0 for gain in gained) > 10


def test_a_new_replica_gets_its_share_in_a_few_placements():
    demands = zipf(1000, 1000.0)
    placement = place(None, demands, rooms(9))
    share = sum(d.rate for d in demands.values()) / 10
    shares = []
    for _ in range(5):
        placement = place(placement, demands, rooms(10))
        shares.append(loads(placement, demands)["node-09"] / share)
    assert shares[0] <= GAIN + 1e-9
    assert shares[-1] > 0.85
    assert placement is place(placement, demands, rooms(10))


def test_few_tasks_move_at_once():
    placement = place(None, zipf(2000, 1000.0), rooms(10))
    demands = {task: Demand(1.0 if "node-00" in homes.homes else 0.1, 10) for task, homes in placement.tasks.items()}
    after = place(placement, demands, rooms(10))
    assert 0 < len(gained(placement, after)) <= SHARE * 2000
    assert after.moves == len(gained(placement, after))
    few = dict(list(zipf(20, 1000.0).items()))
    small = place(None, few, rooms(2))
    opposite = {task: Demand(50.0 if small.tasks[task].homes[0] == "node-00" else 1.0, 10) for task in few}
    assert 0 < place(small, opposite, rooms(2)).moves <= FEWEST


def test_the_first_loads_become_even_at_once():
    demands = zipf(64, 400.0)
    placement = place(None, {task: Demand(0.0, 10) for task in demands}, rooms(4))
    after = place(placement, demands, rooms(4))
    assert imbalance(after, demands) <= 1.2
    assert after.moves > FEWEST


def test_the_home_that_a_task_leaves_is_its_second_home_until_the_new_one_has_it():
    placement = place(None, zipf(2000, 1000.0), rooms(10))
    demands = {task: Demand(1.0 if "node-00" in homes.homes else 0.1, 10) for task, homes in placement.tasks.items()}
    after = place(placement, demands, rooms(10))
    moves = gained(placement, after)
    left = [task for task in moves if len(placement.tasks[task].homes) == 1]
    assert left
    assert all((after.tasks[task].second,) == placement.tasks[task].homes for task in left)
    assert all(after.tasks[task].since == after.epoch for task in left)


def test_a_heavy_task_has_several_homes_and_keeps_them_while_its_load_changes_little():
    demands = {"heavy": Demand(400.0, 10), **{f"light-{i}": Demand(6.0, 10) for i in range(100)}}
    placement = place(None, demands, rooms(10))
    homes = placement.tasks["heavy"].homes
    assert len(homes) >= 4
    assert imbalance(placement, demands) <= 1.15
    for rate in (330.0, 430.0, 400.0):
        placement = place(placement, demands | {"heavy": Demand(rate, 10)}, rooms(10))
        assert placement.tasks["heavy"].homes == homes
    for rate in (60.0, 15.0):
        placement = place(placement, demands | {"heavy": Demand(rate, 10)}, rooms(10))
    assert len(placement.tasks["heavy"].homes) == 1


def test_homes_that_join_others_do_not_make_those_wait():
    demands = {"heavy": Demand(400.0, 10), **{f"light-{i}": Demand(6.0, 10) for i in range(100)}}
    placement = place(None, demands, rooms(10))
    after = place(placement, demands | {"heavy": Demand(1800.0, 10)}, rooms(10))
    earlier, now = placement.tasks["heavy"], after.tasks["heavy"]
    assert set(earlier.homes) < set(now.homes)
    assert {now.arrival(home) for home in earlier.homes} <= {0, 1}
    assert {now.arrival(home) for home in now.homes if home not in earlier.homes} == {2}


def test_a_second_home_that_becomes_one_home_more_is_a_change():
    demands = {"light": Demand(60.0, 10), "heavy": Demand(60.0, 10)}
    placement = place(None, demands, rooms(2))
    assert placement.tasks["heavy"].second is not None
    after = place(placement, demands | {"heavy": Demand(600.0, 10)}, rooms(2))
    assert set(after.tasks["heavy"].homes) == set(placement.tasks["heavy"].everywhere)
    assert after.epoch == 2


def test_a_task_too_heavy_to_be_moved_is_shared_with_a_replica_that_can_pass_on_light_ones():
    heavy, light = (
        {f"heavy-{i}": Demand(50.0, 10) for i in range(2)},
        {f"light-{i}": Demand(1.0, 10) for i in range(300)},
    )
    placement = place(None, heavy | light, rooms(4))
    together = {
        task: replace(homes, homes=("node-00",) if task in heavy else (f"node-{1 + i % 3:02}",), second=None)
        for i, (task, homes) in enumerate(placement.tasks.items())
    }
    earlier = replace(placement, tasks=together)
    heavier = light | {task: Demand(75.0, 10) for task in heavy}
    assert imbalance(earlier, heavier) > 1.3
    assert imbalance(settled(earlier, heavier, rooms(4)), heavier) <= 1.2


def test_what_does_not_fit_is_placed_and_the_busy_tasks_have_the_room():
    demands = {f"task-{i:03}": Demand(float(i % 50), 10) for i in range(300)}
    replicas = rooms(5, 300)
    placement = place(None, demands, replicas)
    is_sound(placement, demands, replicas)
    busy = sorted(demands, key=lambda t: (-demands[t].rate, t))[:135]
    of_busy: Counter[str] = Counter()
    for task in busy:
        of_busy[placement.tasks[task].homes[0]] += 10
    assert max(of_busy.values()) <= 300
    assert imbalance(placement, demands) <= 1.15
    assert place(placement, demands, replicas) is placement


def test_a_task_larger_than_every_replica_is_placed_and_keeps_no_other_from_its_room():
    demands = zipf(10, 100.0, nbytes=10) | {"huge": Demand(1.0, 10**9)}
    replicas = rooms(2, 60)
    placement = place(None, demands, replicas)
    del demands["huge"]
    assert placement.tasks["huge"].homes
    assert max(held(replace(placement, tasks={t: placement.tasks[t] for t in demands}), demands).values()) <= 60


def test_bytes_that_turn_out_larger_make_the_tasks_asked_for_least_move():
    demands = {f"task-{i:02}": Demand(1.0 + i, 0) for i in range(40)}
    placement = place(None, demands, rooms(4))
    bytes_known = {
        task: Demand(d.rate, 40 if placement.tasks[task].homes[0] == "node-00" else 10) for task, d in demands.items()
    }
    replicas = rooms(4, 250)
    assert held(placement, bytes_known)["node-00"] > 250
    after = settled(placement, bytes_known, replicas)
    assert max(held(after, bytes_known).values()) <= 250
    assert imbalance(after, bytes_known) <= 1.3


def test_loads_become_even_on_replicas_that_are_nearly_full():
    earlier, replicas = {f"task-{i:03}": Demand(1.0, 10) for i in range(1000)}, rooms(10, 1030)
    placement = place(None, earlier, replicas)
    demands = {t: Demand(3.0 if "node-00" in homes.homes else 1.0, 10) for t, homes in placement.tasks.items()}
    after = settled(placement, demands, replicas)
    assert max(held(after, demands).values()) <= 1030
    assert imbalance(after, demands) <= 1.2


def test_second_homes_get_the_room_that_homes_leave():
    demands = zipf(100, 1000.0, nbytes=10)
    replicas = rooms(5, 600)
    placement = place(None, demands, replicas)
    total = held(placement, demands)
    for homes in placement.tasks.values():
        total[homes.second] += 10
    assert max(total.values()) <= 600


def test_tasks_that_nobody_asks_for_are_spread():
    demands = {f"task-{i}": Demand(0.0, 10) for i in range(1000)}
    counts = Counter(homes.homes[0] for homes in place(None, demands, rooms(10)).tasks.values())
    assert all(60 < counts[name] < 140 for name in rooms(10))


def test_a_task_that_is_gone_leaves_the_placement():
    demands = zipf(20, 100.0)
    placement = place(None, demands, rooms(3))
    del demands["task-0003"]
    after = place(placement, demands, rooms(3))
    assert "task-0003" not in after.tasks
    assert after.epoch == placement.epoch + 1


def test_new_tasks_are_no_moves():
    placement = place(None, zipf(20, 100.0), rooms(3))
    after = place(placement, zipf(20, 100.0) | {"new": Demand(1.0, 10)}, rooms(3))
    assert after.moves == 0
    asked_so_far = order(bucket_key(bucket_of("new")), rooms(3))[0]
    assert after.tasks["new"].since == (0 if after.tasks["new"].homes == (asked_so_far,) else 2)


def test_a_new_task_stays_where_proxies_asked_for_it_and_counts_there_at_once():
    placement = place(None, zipf(20, 100.0), rooms(3))
    names = [f"new-{i}" for i in range(50)]
    after = place(placement, zipf(20, 100.0) | {name: Demand(0.0, 10) for name in names}, rooms(3))
    for name in names:
        assert after.tasks[name].homes == (order(bucket_key(bucket_of(name)), rooms(3))[0],)
        assert after.tasks[name].since == 0


def test_the_home_that_a_full_replica_gives_up_answers_until_the_new_one_has_the_task():
    """Its bytes do not fit there any more, and no other replica has it."""
    names = [f"t{i:02}" for i in range(7)]
    placement = place(None, {name: Demand(1.0, 50) for name in names}, {"a": Room(500)})
    placement = replace(placement, replicas=("a", "b", "c", "d"))
    wide = {"a": Room(500), "b": Room(500), "c": Room(700), "d": Room(700)}
    after = place(placement, {name: Demand(1.0, 100) for name in names}, wide)
    moved_away = [name for name in names if after.tasks[name].homes != ("a",)]
    assert moved_away
    assert {after.tasks[name].second for name in moved_away} == {"a"}


def test_a_single_replica_is_home_to_all():
    placement = place(None, zipf(5, 100.0), rooms(1))
    assert {(homes.homes, homes.second) for homes in placement.tasks.values()} == {(("node-00",), None)}


def test_there_must_be_a_replica():
    with pytest.raises(ValueError, match="no replica"):
        place(None, zipf(5, 1.0), {})


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_counts_as_none(rate):
    placement = place(None, zipf(5, 100.0) | {"odd": Demand(rate, 10)}, rooms(3))
    assert placement.tasks["odd"].rate == 0.0


def test_before_any_load_is_known_tasks_spread_over_replicas_that_join():
    """Otherwise the first replica of a server would get all requests until their load is measured."""
    tasks = {f"task-{i}": Demand(0.0, 10) for i in range(60)}
    placement = place(place(None, tasks, rooms(1)), tasks, rooms(3))
    at = [sum(homes.homes == (name,) for homes in placement.tasks.values()) for name in rooms(3)]
    assert min(at) >= 10
