"""Which requests a replica takes: each check, its refusal, and what is counted meanwhile; no HTTP, no engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from serving.admission import Admission, AdmissionLimits
from serving.errors import InvalidInputError, OverloadedError, ServingError, TooLargeError, UnavailableError

LIMITS = AdmissionLimits(max_requests=2, max_inputs=3, max_tokens=10, queue_rows=4, batch_rows=2, max_tasks=2)


@dataclass(frozen=True)
class Waiting:
    """An engine's line of so many rows."""

    wanted: int = 0
    abandoned: int = 0
    seconds: float = 1.0

    @property
    def waiting(self) -> int:
        return self.wanted + self.abandoned

    def backlog_seconds(self) -> float:
        return self.seconds


EMPTY = Waiting()


@pytest.fixture
def admission() -> Admission:
    made = Admission(LIMITS)
    made.ready = True
    return made


# Starting and stopping


def test_a_replica_takes_requests_between_start_and_drain_only(admission: Admission) -> None:
    admission.check_open()
    admission.ready = False
    with pytest.raises(UnavailableError, match="starting"):
        admission.check_open()
    admission.draining = True
    with pytest.raises(UnavailableError, match="stopping"):
        admission.check_open()


def test_a_new_replica_takes_nothing() -> None:
    with pytest.raises(UnavailableError, match="starting"):
        Admission().check_open()


def test_requests_count_until_their_answer_is_sent_even_if_they_fail(admission: Admission) -> None:
    def fail() -> None:
        with admission.request():
            assert admission.requests == 2
            raise OSError("the client is gone")

    with admission.request():
        with pytest.raises(OSError, match="gone"):
            fail()
        assert admission.requests == 1
    assert admission.requests == 0


# Predictions


def test_as_many_predictions_run_as_may_and_the_next_is_told_when_to_come_again(admission: Admission) -> None:
    with admission.prediction(EMPTY):
        admission.check_free(EMPTY)
        with admission.prediction(EMPTY):
            assert admission.predictions == 2
            for refused in (lambda: admission.check_free(Waiting(seconds=7.5)), lambda: begin(admission)):
                with pytest.raises(OverloadedError, match=r"2 requests are in flight already; try again in 7\.5 s"):
                    refused()
            assert admission.predictions == 2
        admission.check_free(EMPTY)
    assert admission.predictions == 0


def begin(admission: Admission) -> None:
    with admission.prediction(Waiting(seconds=7.5)):
        pass


def test_a_request_that_is_no_prediction_takes_no_place_of_one(admission: Admission) -> None:
    with admission.request(), admission.request(), admission.request():
        admission.check_free(EMPTY)


@pytest.mark.parametrize("inputs", [1, 3])
def test_as_many_inputs_as_a_request_may_have_are_taken(inputs: int, admission: Admission) -> None:
    admission.check_count(inputs)


@pytest.mark.parametrize(("inputs", "reason"), [(0, "at least one"), (4, "found 4, at most 3")])
def test_a_request_without_inputs_or_with_too_many_is_refused(inputs: int, reason: str, admission: Admission) -> None:
    with pytest.raises(InvalidInputError, match=f"inputs: .*{reason}"):
        admission.check_count(inputs)


def test_more_tokens_than_a_request_may_have_are_refused(admission: Admission) -> None:
    admission.check_tokens(10)
    with pytest.raises(TooLargeError, match="11 tokens, at most 10"):
        admission.check_tokens(11)


def test_the_limits_of_a_request_hold_for_all_its_tasks_together(admission: Admission) -> None:
    admission.check_tasks(2)
    with pytest.raises(InvalidInputError, match="tasks: found 3, at most 2"):
        admission.check_tasks(3)
    admission.check_count(1, tasks=3)
    with pytest.raises(InvalidInputError, match="inputs: found 2 for each of 2 tasks, at most 3"):
        admission.check_count(2, tasks=2)
    admission.check_tokens(5, tasks=2)
    with pytest.raises(TooLargeError, match="6 tokens for each of 2 tasks, at most 10"):
        admission.check_tokens(6, tasks=2)


# The line


def test_inputs_that_are_prepared_fill_the_line_as_rows_in_it_do(admission: Admission) -> None:
    with admission.preparation(Waiting(1), 2):
        assert admission.preparing == 2
        with admission.preparation(Waiting(1), 1):
            with pytest.raises(OverloadedError, match="4 inputs wait already; try again in 9 s") as refused:
                prepare(admission, Waiting(1, seconds=9.0), 1)
            assert refused.value.retry_after == 9.0
            assert admission.preparing == 3
    assert admission.preparing == 0


def prepare(admission: Admission, line: Waiting, inputs: int) -> None:
    with admission.preparation(line, inputs):
        pass


@pytest.mark.parametrize("check", [prepare, Admission.check_line])
def test_a_request_larger_than_the_line_is_taken_when_nothing_waits(
    check: Callable[[Admission, Waiting, int], None], admission: Admission
) -> None:
    check(admission, EMPTY, 100)
    with pytest.raises(OverloadedError, match="1 inputs wait already"):
        check(admission, Waiting(1), 100)


def test_the_engines_line_has_room_for_what_is_prepared_already(admission: Admission) -> None:
    """Rows enter the line after their inputs left preparation: what others prepare has no place in it yet."""
    with admission.preparation(EMPTY, 4):
        admission.check_line(Waiting(2), 2)
        with pytest.raises(OverloadedError, match="2 inputs wait already"):
            admission.check_line(Waiting(2), 3)


def test_abandoned_rows_hold_no_place(admission: Admission) -> None:
    admission.check_line(Waiting(wanted=1, abandoned=100), 3)
    prepare(admission, Waiting(wanted=1, abandoned=100), 3)


def test_a_replica_is_busy_when_more_waits_than_a_batch_takes_or_it_drains(admission: Admission) -> None:
    assert not admission.is_busy(Waiting(2))
    assert admission.is_busy(Waiting(wanted=1, abandoned=2))
    with admission.preparation(EMPTY, 1):
        assert admission.is_busy(Waiting(2))
    admission.draining = True
    assert admission.is_busy(EMPTY)


# In which form


@pytest.mark.parametrize(
    ("refused", "status", "again"),
    [
        (lambda a: Admission().check_open(), 503, 1.0),
        (lambda a: Admission(AdmissionLimits(max_requests=0)).check_free(Waiting(seconds=5.0)), 429, 5.0),
        (lambda a: a.check_tasks(3), 422, None),
        (lambda a: a.check_count(0), 422, None),
        (lambda a: prepare(a, Waiting(4, seconds=5.0), 1), 429, 5.0),
        (lambda a: a.check_tokens(11), 413, None),
        (lambda a: a.check_line(Waiting(4, seconds=5.0), 1), 429, 5.0),
    ],
)
def test_each_refusal_has_a_status_and_says_when_to_come_again_where_that_helps(
    refused: Callable[[Admission], None], status: int, again: float | None, admission: Admission
) -> None:
    with pytest.raises(ServingError) as found:
        refused(admission)
    assert (found.value.status, found.value.retry_after) == (status, again)
