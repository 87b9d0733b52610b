"""The policy of batches of any keys on a simulated replica, next to batches of one key."""

from __future__ import annotations

import pytest

from benchmarks.simulate import (
    PRODUCTS,
    TIMES,
    Arrival,
    Exchanging,
    Mixing,
    Replica,
    Times,
    least_mean_latency,
    most_rows_a_second,
    policies,
    synthetic,
)

CPU = TIMES["CPU"]
SCARCE = Times(switch=1.0, fixed=1.0, token=1.0, product=1.0 / PRODUCTS, group=10.0)


def test_no_batch_passes_a_row_over_that_is_older_than_all_its_rows() -> None:
    trace = synthetic(2000, 1.0)
    mixing, exchanging = (Replica(make(), CPU, clients=256).run(trace) for make in (Mixing, Exchanging))
    assert mixing.rows == 2000
    assert mixing.passed_over == 0
    assert exchanging.passed_over > 0


def test_many_tasks_get_more_done_mixed_than_by_exchange_with_no_switch() -> None:
    trace = synthetic(2000, 1.0)
    mixing, exchanging = (Replica(make(), CPU, clients=256).run(trace) for make in (Mixing, Exchanging))
    assert mixing.throughput > exchanging.throughput
    assert mixing.ran / mixing.batches > exchanging.ran / exchanging.batches
    assert (mixing.switches, exchanging.switches > 0) == (0, True)


def test_mixing_beats_no_bound_that_holds_for_batches_of_any_tasks() -> None:
    trace = synthetic(800, 50.0, tasks=40)
    out = Replica(Mixing(), CPU, patience=1e9).run(trace)
    assert out.rows == len(trace)
    assert sum(out.latencies) / out.rows > least_mean_latency(trace, CPU)
    assert Replica(Mixing(), CPU, patience=1e9, clients=256).run(trace).throughput < most_rows_a_second(trace, CPU)


def test_a_mixed_batch_pays_for_its_tokens_their_corrections_and_its_tasks() -> None:
    rows = [Arrival(0.0, "a", 2), Arrival(0.0, "b", 2)]
    out = Replica(Mixing(), SCARCE).run(rows)
    fixed, tokens, corrections, tasks = 1.0, 4.0, 4.0, 20.0
    assert (out.batches, out.seconds) == (1, pytest.approx(fixed + tokens + corrections + tasks))


def test_mixing_is_simulated_only_where_the_cost_of_corrections_is_known() -> None:
    assert "ken, mixed" in policies(CPU)
    assert "ken, mixed" not in policies(TIMES["GPU"])
