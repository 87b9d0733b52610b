"""Which way texts of many tasks run, by what steps and switches have taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serving.generation.ways import StepCosts


class Task:
    """As far as costs look at one."""

    def __init__(self, products: int = 10_000_000, expanded: bool = True) -> None:
        self.attached = SimpleNamespace(products=products, expanded=expanded)


def costs(step: float, a_task: float, switch: float) -> Any:
    """Costs that have seen steps of one task and mixed steps take so long, and a switch."""
    made = StepCosts(quantum=0.5)
    made.switch = switch
    tasks = [Task() for _ in range(4)]
    for tokens in (4, 8) * 40:
        made.learn(tokens, step)
        made.learn_mixed(dict.fromkeys(tasks, tokens // 4), step + 4 * a_task)  # type: ignore[misc]
    return made


def texts(count: int, each: int = 2, **task: Any) -> dict[Any, int]:
    return {Task(**task): each for _ in range(count)}


def test_tasks_mix_where_a_step_of_all_costs_less_than_turns() -> None:
    assert costs(step=0.08, a_task=0.01, switch=0.06).prefers_mixed(texts(4))


def test_tasks_take_turns_where_mixed_steps_cost_too_much() -> None:
    assert not costs(step=0.08, a_task=0.2, switch=0.06).prefers_mixed(texts(4))


def test_a_task_that_cannot_be_exchanged_mixes_always() -> None:
    made = costs(step=0.08, a_task=0.2, switch=0.06)
    assert made.prefers_mixed(texts(1, expanded=False))
    assert made.prefers_mixed({**texts(3), **texts(1, expanded=False)})


def test_a_task_that_was_never_beside_others_is_exchanged_at_once() -> None:
    assert not StepCosts(0.5).prefers_mixed(texts(1))


def test_a_task_alone_after_mixed_steps_waits_until_its_corrections_have_cost_some_switches() -> None:
    made = costs(step=0.08, a_task=0.01, switch=0.06)
    (alone,) = one = texts(1)
    steps = 0
    while made.prefers_mixed(one):
        made.learn_mixed({alone: 2}, 0.09)
        steps += 1
        assert steps < 1000
    assert steps > 1
    assert not made.prefers_mixed(one)
    made.learn_mixed(dict.fromkeys(texts(2), 2), 0.1)
    assert made.prefers_mixed(one)


@pytest.mark.parametrize("products", [0, 10_000_000])
def test_a_turn_lasts_as_long_as_some_switches_but_no_longer_than_a_quantum(products: int) -> None:
    made = costs(step=0.02, a_task=0.001, switch=0.01)
    assert made.turn == pytest.approx(0.09)
    made.switch = 1.0
    assert made.turn == 0.5
    assert made.token([Task(products)]) >= made.token([])  # type: ignore[list-item]
