"""Events as they are written, and a stream that waits for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from serving.api.event_stream import COMMENT, event, while_heard
from serving.api.middleware import GoneError
from serving.errors import DeadlineError

GONE = {"type": "http.disconnect"}


class Jumping(asyncio.SelectorEventLoop):
    """Its clock goes forward only when nothing can run, and then to what is due next."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr("serving.api.event_stream.time", told)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=Jumping) as runner:
        return runner.run(work)


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def numbers(*pauses: float) -> AsyncIterator[int]:
    for number, seconds in enumerate(pauses):
        await asyncio.sleep(seconds)
        yield number


def test_an_event_is_one_line_of_data_whatever_it_says() -> None:
    text = "two\nlines: and a line separator \u2028"
    name, data, *rest = event({"text": text}, "piece").split(b"\n")
    assert (name, rest) == (b"event: piece", [b"", b""])
    assert json.loads(data.removeprefix(b"data: ")) == {"text": text}
    assert event(b"[DONE]") == b"data: [DONE]\n\n"


def test_a_comment_is_no_event_to_anybody() -> None:
    assert COMMENT.startswith(b":")
    assert COMMENT.endswith(b"\n\n")


async def heard(coming: AsyncIterator[int], receive: Any, pause: float, seconds: float = 60) -> tuple[list[Any], Any]:
    """What came, and how it ended."""
    found: list[Any] = []
    try:
        async for one in while_heard(coming, receive, pause, seconds):
            found.append(one)  # noqa: PERF401 - what came before an error counts
    except BaseException as error:
        return found, error
    return found, None


def test_a_pause_is_told_of_after_the_first_and_not_before() -> None:
    found, error = run(heard(numbers(0.2, 0.25), never, 0.1))
    assert error is None
    assert (found[0], found[-1]) == (0, 1)
    assert set(found[1:-1]) == {None}


def test_a_client_that_leaves_ends_the_wait() -> None:
    ended = False

    async def endless() -> AsyncIterator[int]:
        nonlocal ended
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            ended = True

    async def leaving() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return GONE

    found, error = run(heard(endless(), leaving, 60))
    assert (found, type(error), ended) == ([0], GoneError, True)


def test_what_came_before_a_failure_is_passed_on_and_the_failure_too() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 0
        raise OSError("lost")

    found, error = run(heard(failing(), never, 60))
    assert (found, type(error)) == ([0], OSError)


@pytest.mark.parametrize(("pauses", "expected"), [((60,), []), ((0, 60), [0, None, None])])
def test_what_is_too_late_is_not_waited_for(pauses: tuple[float, ...], expected: list[Any]) -> None:
    found, error = run(heard(numbers(*pauses), never, 0.1, 0.25))
    assert (found, type(error)) == (expected, DeadlineError)
