"""Turns at the weights: several that read them, or one that may change them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving.engine.crew import Crew, Turn


def begun(crew: Crew) -> Turn:
    with crew.lock:
        return crew.begin()


@pytest.fixture
def elsewhere() -> Iterator[Callable[..., Future[Any]]]:
    """Run something on another thread."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def owned(crew: Crew, entered: threading.Event, go: threading.Event) -> None:
    with begun(crew) as turn:
        turn.own()
        entered.set()
        assert go.wait(20)


def test_turns_at_the_same_time_divide_the_threads(elsewhere: Callable[..., Future[Any]]) -> None:
    def of_torch(crew: Crew) -> tuple[float, int]:
        with begun(crew) as turn:
            return turn.share, torch.get_num_threads()

    for size, threads, share, each in ((1, 4, 1.0, 4), (2, 4, 0.5, 2), (3, 4, 0.25, 1), (4, 4, 0.25, 1)):
        assert elsewhere(of_torch, Crew(size, threads)).result(20) == (share, each)


def test_whoever_owns_the_weights_has_all_threads(elsewhere: Callable[..., Future[Any]]) -> None:
    def of_torch() -> tuple[float, int]:
        with begun(Crew(2, 4)) as turn:
            turn.own()
            return turn.share, torch.get_num_threads()

    assert elsewhere(of_torch).result(20) == (1.0, 4)


def test_nobody_owns_the_weights_while_another_turn_reads_them(elsewhere: Callable[..., Future[Any]]) -> None:
    crew, entered, go = Crew(2, 2), threading.Event(), threading.Event()
    with begun(crew):
        waiting = elsewhere(owned, crew, entered, go)
        assert not entered.wait(0.2)
        with crew.lock:
            assert not crew.may_begin(0), "further batches would keep the owner waiting for ever"
    assert entered.wait(20)
    with crew.lock:
        assert not crew.may_begin(1)
    go.set()
    waiting.result(20)
    with crew.lock:
        assert crew.may_begin(0)
        assert crew.is_idle


def test_two_that_both_want_to_own_do_so_one_after_another(elsewhere: Callable[..., Future[Any]]) -> None:
    crew, both = Crew(2, 2), threading.Barrier(2)
    inside: list[int] = []

    def change(number: int) -> None:
        with begun(crew) as turn:
            both.wait(20)
            turn.own()
            inside.append(number)
            threading.Event().wait(0.05)
            inside.append(number)

    for turn in [elsewhere(change, number) for number in range(2)]:
        turn.result(20)
    assert inside in ([0, 0, 1, 1], [1, 1, 0, 0])


def test_waiting_for_other_turns_costs_the_share_of_the_threads_that_stood_idle(
    elsewhere: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_at = iter([10.0, 14.0])
    monkeypatch.setattr("serving.engine.crew.time", SimpleNamespace(perf_counter=lambda: next(asked_at)))
    crew, begins = Crew(2, 2), threading.Event()

    def change() -> tuple[float, float]:
        with begun(crew) as turn:
            begins.set()
            turn.own()
            return turn.idle_seconds(), turn.idle_seconds()

    with begun(crew):
        waiting = elsewhere(change)
        assert begins.wait(20)
    assert waiting.result(20) == (0.5 * 4.0, 0.0)


def test_owning_twice_is_owning_once() -> None:
    crew = Crew(2, 2)
    with begun(crew) as turn:
        turn.own()
        turn.own()
    with crew.lock:
        assert crew.free == 2


def test_a_later_thread_has_work_only_while_the_earlier_ones_are_busy() -> None:
    crew = Crew(3, 3)
    with crew.lock:
        assert [crew.may_begin(number) for number in range(3)] == [True, False, False]
    with begun(crew), begun(crew), crew.lock:
        assert [crew.may_begin(number) for number in range(3)] == [True, True, True]
        assert crew.free == 1


def test_the_first_of_the_threads_that_sleep_is_woken(elsewhere: Callable[..., Future[Any]]) -> None:
    crew, woken = Crew(2, 2), list[int]()

    def look(number: int) -> bool:
        """What a thread looks at when it is woken: it notes itself, and sleeps on."""
        if go.is_set():
            woken.append(number)
        return done.is_set()

    def wait(number: int) -> None:
        with crew.lock:
            crew.wait(number, lambda: look(number), None)

    go, done = threading.Event(), threading.Event()
    waiting = [elsewhere(wait, number) for number in (1, 0)]
    while len(crew._asleep) < 2:
        threading.Event().wait(0.005)
    go.set()
    with crew.lock:
        crew.wake()
    while not woken:
        threading.Event().wait(0.005)
    assert woken == [0]
    done.set()
    with crew.lock:
        crew.wake_all()
    for thread in waiting:
        thread.result(20)


@pytest.mark.parametrize("size", [0, 3])
def test_more_turns_at_once_than_threads_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="cannot run at once on 2 CPU threads"):
        Crew(size, 2)
