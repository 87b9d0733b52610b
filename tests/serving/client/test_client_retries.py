"""When a call is sent again: the decision alone, and both clients against a server that fails."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from asking import BOTH, Ask
from listening import CUT, Say, Scripted

from serving.client import ApiError, ClientError, ReplyError, Retries, UnreachableError
from serving.client.errors import seconds_of
from serving.launch.ports import free_port

DECIDE = Retries(attempts=3, first=1.0, longest=10.0)
QUICK = {"retries": Retries(first=0.001)}
NOW = 1_700_000_000.0


def answered(status: int, retry_after: float | None = None) -> ApiError:
    return ApiError(status, "title", "detail", retry_after=retry_after)


def lost(sent: bool) -> UnreachableError:
    return UnreachableError("nobody there", sent)


def pause(error: ClientError, repeatable: bool = True, sent: int = 1, remaining: float = 60.0) -> float | None:
    return DECIDE.pause(error, repeatable=repeatable, sent=sent, remaining=remaining, jitter=0.5)


@pytest.mark.parametrize("error", [answered(429), answered(502), answered(503), lost(True), lost(False)])
def test_what_passes_is_tried_again(error: ClientError) -> None:
    assert pause(error) is not None


@pytest.mark.parametrize(
    "error", [*(answered(status, 1.0) for status in (400, 401, 403, 404, 409, 413, 422, 500, 501, 504)), ReplyError()]
)
def test_what_does_not_pass_is_not_tried_again(error: ClientError) -> None:
    assert pause(error) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (lost(sent=False), True),
        (lost(sent=True), False),
        (answered(503, 1.0), True),
        (answered(429, 1.0), True),
        (answered(503), False),
        (answered(502, 1.0), False),
    ],
)
def test_what_must_not_happen_twice_is_tried_again_only_if_it_surely_did_not_happen(
    error: ClientError, again: bool
) -> None:
    assert (pause(error, repeatable=False) is not None) == again


def test_pauses_double_up_to_the_longest() -> None:
    patient = Retries(attempts=100, first=1.0, longest=10.0)
    pauses = [patient.pause(lost(True), repeatable=True, sent=n, remaining=99, jitter=1.0) for n in (1, 2, 3, 4, 5, 50)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_jitter_takes_up_to_half_of_a_pause() -> None:
    pauses = [DECIDE.pause(lost(True), repeatable=True, sent=2, remaining=99, jitter=j) for j in (0.0, 0.5, 1.0)]
    assert pauses == [1.0, 1.5, 2.0]


def test_a_server_that_says_when_is_not_asked_earlier() -> None:
    assert pause(answered(503, 5.0)) == 5.5
    assert pause(answered(503, 0.0)) == 0.5
    assert pause(answered(503, 11.0)) is None


def test_no_attempt_begins_after_the_deadline() -> None:
    assert pause(answered(503, 5.0), remaining=5.4) is None
    assert pause(lost(True), remaining=0.5) is None


def test_attempts_are_counted() -> None:
    assert pause(lost(True), sent=2) is not None
    assert pause(lost(True), sent=3) is None
    assert Retries(attempts=1).pause(lost(False), repeatable=True, sent=1, remaining=9, jitter=0.0) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert seconds_of(header, NOW) == seconds


# Against a server

REFUSED = Say(503, b"{}", {"Retry-After": "0"})
BUSY = Say(429, b"{}", {"Retry-After": formatdate(NOW, usegmt=True)})
CHANGED = Say(200, b'{"task": "spam", "revision": 7, "pending": []}')


@pytest.mark.parametrize("ask", BOTH)
@pytest.mark.parametrize("first", [REFUSED, BUSY, Say(502), CUT])
def test_a_call_is_repeated_until_it_is_answered(ask: Ask, first: Say) -> None:
    with Scripted(first, first, Say()) as server:
        assert ask(server.url, "tasks", client=QUICK) == []
    assert server.lines == ["GET /v1/tasks"] * 3


@pytest.mark.parametrize("ask", BOTH)
def test_a_rollback_is_repeated_if_the_server_refused_it(ask: Ask) -> None:
    with Scripted(REFUSED, CHANGED) as server:
        assert ask(server.url, "rollback", "spam", client=QUICK).revision == 7
    assert len(server.heard) == 2


@pytest.mark.parametrize("ask", BOTH)
def test_a_rollback_that_may_have_happened_is_not_repeated(ask: Ask) -> None:
    with Scripted(CUT, CHANGED) as server, pytest.raises(UnreachableError) as lost:
        ask(server.url, "rollback", "spam", client=QUICK)
    assert lost.value.sent
    assert len(server.heard) == 1


@pytest.mark.parametrize("ask", BOTH)
def test_what_the_server_said_last_is_raised_when_attempts_are_over(ask: Ask) -> None:
    body = b'{"title": "Unavailable", "status": 503, "detail": "starting", "request_id": "r1"}'
    refusal = Say(503, body, {"Retry-After": "0", "Content-Type": "application/problem+json"})
    with Scripted(refusal) as server, pytest.raises(ApiError, match="starting") as refused:
        ask(server.url, "tasks", client={"retries": Retries(attempts=3, first=0.001)})
    error = refused.value
    assert (error.status, error.title, error.detail) == (503, "Unavailable", "starting")
    assert (error.request_id, error.retry_after) == ("r1", 0.0)
    assert len(server.heard) == 3


@pytest.mark.parametrize("ask", BOTH)
def test_a_server_that_asks_for_more_patience_than_the_deadline_has_is_not_waited_for(ask: Ask) -> None:
    with Scripted(Say(503, b"{}", {"Retry-After": "15"})) as server, pytest.raises(ApiError):
        ask(server.url, "tasks", client={"timeout": 5.0})
    assert len(server.heard) == 1


@pytest.mark.parametrize("ask", BOTH)
def test_a_server_that_is_not_there_is_named(ask: Ask) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UnreachableError, match=f"{url} does not answer.*check that the server is running") as lost:
        ask(url, "tasks", client=QUICK)
    assert not lost.value.sent


@pytest.mark.parametrize("ask", BOTH)
def test_each_attempt_tells_the_server_what_is_left_of_the_deadline(ask: Ask) -> None:
    with Scripted(REFUSED, Say(504, b"{}")) as server, pytest.raises(ApiError):
        ask(server.url, "predict", "spam", "rain", timeout=20.0, client=QUICK)
    first, second = (int(heard.headers["X-Request-Timeout-Ms"]) for heard in server.heard)
    assert 0 < second < first <= 20_000
