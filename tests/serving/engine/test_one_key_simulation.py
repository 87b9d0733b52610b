"""The policy of one key a batch on a simulated replica: its estimate of the backlog, and next to simpler policies."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from benchmarks.simulate import (
    POLICIES,
    RECORDED,
    TIMES,
    Arrival,
    Exchanging,
    Outcome,
    Replica,
    Times,
    Trace,
    least_mean_latency,
    least_seconds,
    most_rows_a_second,
    read_trace,
    synthetic,
)

SCARCE = Times(switch=1.0, fixed=1.0, token=1.0)


@pytest.mark.parametrize("times", TIMES.values(), ids=list(TIMES))
@pytest.mark.parametrize(("tasks", "depth"), [(1, 200), (30, 64), (30, 1000), (1000, 256), (1000, 2000)])
def test_the_backlog_is_estimated_within_a_factor_of_two(times: Times, tasks: int, depth: int) -> None:
    exchanging = Exchanging()
    replica = Replica(exchanging, times, patience=1e9, clients=depth)
    replica.run(synthetic(1500, 1.0, tasks))
    waiting = Replica(exchanging, times, patience=1e9, clients=depth)
    waiting.admit(deque(synthetic(depth, 1.0, tasks, seed=1)))
    estimate = exchanging.policy.backlog_seconds(exchanging.line.queues.values())
    took = waiting.run([]).seconds
    assert took / 2 < estimate < 2 * took


@pytest.fixture(scope="module")
def saturated() -> dict[str, dict[str, Outcome]]:
    trace = synthetic(3000, 1.0)
    return {
        name: {policy: Replica(make(), times, clients=256).run(trace) for policy, make in POLICIES.items()}
        for name, times in TIMES.items()
    }


@pytest.mark.parametrize("name", list(TIMES))
def test_under_load_no_simpler_policy_gets_more_done(saturated: dict[str, dict[str, Outcome]], name: str) -> None:
    own, *others = saturated[name].values()
    assert own.rows == 3000
    assert own.throughput > 0.99 * max(other.throughput for other in others)


@pytest.mark.parametrize("name", list(TIMES))
def test_under_load_the_slowest_answers_are_not_much_slower_than_in_order_of_age(
    saturated: dict[str, dict[str, Outcome]], name: str
) -> None:
    assert saturated[name]["ken"].latency(0.99) < 1.25 * saturated[name]["oldest task first"].latency(0.99)


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("times", TIMES.values(), ids=list(TIMES))
def test_no_policy_beats_a_bound(policy: str, times: Times) -> None:
    trace = synthetic(800, 50.0, tasks=40)
    together = [replace(a, at=0.0) for a in trace]
    drained = Replica(POLICIES[policy](), times, patience=1e9).run(together)
    assert drained.rows == len(trace)
    assert drained.seconds > least_seconds(together, times)
    assert drained.throughput < most_rows_a_second(together, times)
    served = Replica(POLICIES[policy](), times, patience=1e9).run(trace)
    assert sum(served.latencies) / served.rows > least_mean_latency(trace, times)


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_replica_alone_with_a_row_takes_a_switch_and_a_batch(policy: str) -> None:
    out = Replica(POLICIES[policy](), SCARCE).run([Arrival(5.0, "a", 3)])
    assert out.latencies == [1.0 + 1.0 + 3.0]
    assert (out.seconds, out.switches, out.batches, out.padding) == (10.0, 1, 1, 0.0)


def test_rows_that_find_the_line_full_or_wait_too_long_are_lost() -> None:
    trace: Trace = [Arrival(0.0, f"t{i}", 10) for i in range(6)]
    out = Replica(POLICIES["FIFO"](), SCARCE, queue_rows=4, patience=30.0).run(trace)
    assert (out.rows, out.refused, out.missed) == (2, 2, 2)
    assert out.lost == pytest.approx(4 / 6)


def test_on_the_recorded_trace_every_row_is_answered_in_no_more_switches_than_in_order_of_arrival() -> None:
    trace, measured = read_trace(RECORDED)
    times = Times(measured["switch"], measured["fixed"], measured["token"])
    own, fifo = (Replica(POLICIES[policy](), times).run(trace) for policy in ("ken", "FIFO"))
    assert own.rows == len(trace) > 1000
    assert own.switches <= fifo.switches
