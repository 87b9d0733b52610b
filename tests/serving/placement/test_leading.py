"""When a new placement is made, and when it is worth telling."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from serving.placement.leading import LOST_SECONDS, SETTLED_SECONDS, Leading
from serving.placement.ledger import Room
from serving.placement.plan import Placement

TASKS = [f"task-{i}" for i in range(12)]


class Store:
    """Keeps what one leader makes, as time goes by."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.leading = Leading(seconds)
        self.placement: Placement | None = None
        self.rates: dict[str, float] = {}

    def at(self, now: float, *replicas: str, tasks: Sequence[str] = TASKS) -> bool:
        told = {"a": {task: (rate, 10) for task, rate in self.rates.items()}}
        rooms = {replica: Room(1000) for replica in replicas}
        made = self.leading(self.placement, rooms, lambda: told, lambda: list(tasks), now)
        if made is not None:
            assert made.epoch > (self.placement.epoch if self.placement else 0)
            self.placement = made
        return made is not None


@pytest.fixture
def store() -> Store:
    return Store()


def test_the_first_placement_is_made_at_once(store: Store) -> None:
    assert store.at(0.0, "a")
    assert store.placement is not None
    assert set(store.placement.tasks) == set(TASKS)


def test_without_a_replica_none_is_made(store: Store) -> None:
    assert not store.at(0.0)


def test_nothing_is_told_while_nothing_changes(store: Store) -> None:
    store.at(0.0, "a", "b")
    assert not any(store.at(float(now), "a", "b") for now in range(1, 100))


def test_a_new_replica_is_placed_on_once_no_other_was_added_for_a_while(store: Store) -> None:
    store.at(0.0, "a")
    assert not store.at(1.0, "a", "b")
    assert not store.at(2.0, "a", "b", "c")
    assert not store.at(2.0 + SETTLED_SECONDS - 0.1, "a", "b", "c")
    assert store.at(2.0 + SETTLED_SECONDS, "a", "b", "c")
    assert store.placement is not None
    assert store.placement.replicas == ("a", "b", "c")


def test_a_lost_replica_is_replaced_at_once(store: Store) -> None:
    store.at(0.0, "a", "b")
    assert store.at(0.5, "a")
    assert store.placement is not None
    assert store.placement.replicas == ("a",)


def test_new_tasks_are_placed_at_the_next_turn(store: Store) -> None:
    store.at(0.0, "a")
    assert not store.at(14.0, "a", tasks=[*TASKS, "new"])
    assert store.at(15.0, "a", tasks=[*TASKS, "new"])
    assert store.placement is not None
    assert "new" in store.placement.tasks


def test_a_task_that_is_asked_for_now_is_worth_telling_since_its_homes_load_it(store: Store) -> None:
    store.at(0.0, "a")
    store.rates = {"task-3": 2.0}
    assert store.at(15.0, "a")
    assert store.placement is not None
    assert store.placement.tasks["task-3"].rate == 2.0
    assert not store.at(30.0, "a")


def test_a_task_that_is_asked_for_no_more_fades(store: Store) -> None:
    store.rates = {"task-3": 2.0}
    store.at(0.0, "a")
    store.rates = {}
    told = [store.at(float(now), "a") for now in range(15, 1500, 15)]
    assert not any(told)
    store.at(1500.0, "a", "b")
    store.at(1500.0 + SETTLED_SECONDS, "a", "b")
    assert store.placement is not None
    assert store.placement.tasks["task-3"].rate == 0.0


def test_after_the_store_was_down_replicas_have_time_to_report_again(store: Store) -> None:
    """The first one that reports must not get everything."""
    store.rates = dict.fromkeys(TASKS, 10.0)
    for now in range(20):
        store.at(float(now), "a", "b", "c")
    before = store.placement
    assert not store.at(60.0, "a")
    assert not store.at(61.0, "a", "b")
    assert not any(store.at(62.0 + now, "a", "b", "c") for now in range(30))
    assert store.placement == before


def test_a_leader_that_starts_gives_those_of_before_time_to_come(store: Store) -> None:
    store.rates = dict.fromkeys(TASKS, 10.0)
    store.at(0.0, "a", "b", "c")
    store.leading = Leading(15.0)
    assert not any(store.at(100.0 + now, "a", "b") for now in range(int(LOST_SECONDS)))
    assert store.at(100.0 + LOST_SECONDS, "a", "b")
    assert store.placement is not None
    assert store.placement.replicas == ("a", "b")


def test_of_replicas_that_are_all_others_nobody_is_waited_for(store: Store) -> None:
    store.at(0.0, "a", "b")
    store.leading = Leading(15.0)
    assert store.at(100.0, "c")


def test_a_replica_that_was_seen_is_lost_at_once(store: Store) -> None:
    for now in range(5):
        store.at(float(now), "a", "b", "c")
    assert store.at(5.0, "a", "b")
