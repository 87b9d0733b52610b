"""Calls with a time limit."""

from __future__ import annotations

from threading import Event

import pytest

from serving.launch.bounded import within


def test_a_result_and_an_error_are_passed_on() -> None:
    assert within(10, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 // 0)


def test_a_call_that_does_not_return_is_given_up() -> None:
    forever = Event()
    with pytest.raises(TimeoutError, match=r"no result after 0\.01 s"):
        within(0.01, forever.wait)
    forever.set()
