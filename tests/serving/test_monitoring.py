"""What `ken top` computes: rates and quantiles between two readings of replicas' metrics, and what cannot be said."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from serving.client import Replica
from serving.monitoring.activity import Look, activity
from serving.monitoring.readings import Reading, increase, quantile, readings_of
from serving.telemetry.metrics import Metrics


def reading(metrics: Metrics, when: float) -> Reading:
    (found,) = readings_of(generate_latest(metrics.registry).decode(), when).values()
    return found


def test_rates_and_times_are_those_between_two_looks() -> None:
    metrics = Metrics("a")
    for _ in range(100):
        metrics.requests.observe("mood", "d" * 64, 200, 5.0)  # slow, and long ago
    looks = [Look([Replica(name="a", revision=1, in_flight=3)], ["mood", "idle"], {"a": reading(metrics, 10.0)})]
    for seconds, code in ((0.03, 200), (0.03, 200), (0.04, 429), (0.2, 500)):
        metrics.requests.observe("mood", "d" * 64, code, seconds)
    metrics.swaps.inc(4)
    metrics.batch_rows.observe(2)
    metrics.observe_mixed(rows=3, groups=2, seconds=0.01)
    looks.append(Look(looks[0].replicas, ["mood", "idle"], {"a": reading(metrics, 12.0)}, held={"mood": "packed"}))

    found = activity(*looks, unix_seconds=metrics.started._value.get() + 60)
    assert [one.task for one in found.tasks] == ["mood", "idle"]
    mood, idle = (one.answers for one in found.tasks)
    assert mood is not None
    assert idle is not None
    assert (mood.requests_per_second, mood.refused_per_second, mood.failed_per_second) == (2.0, 0.5, 0.5)
    assert mood.p50_seconds == pytest.approx(0.025 + 0.025 * 2 / 3)
    assert mood.p95_seconds == pytest.approx(0.1 + 0.15 * 0.8)
    assert mood.p99_seconds == pytest.approx(0.1 + 0.15 * 0.96)
    assert (idle.requests_per_second, idle.p50_seconds) == (0.0, None)
    assert found.tasks[0].held == "packed"
    assert found.in_flight == 3
    (replica,) = found.replicas
    assert (replica.swaps_per_second, replica.mixed_share, replica.up_seconds) == (2.0, 0.5, 60.0)


def test_rates_of_all_replicas_add_up_and_their_times_are_one_distribution() -> None:
    replicas = [Replica(name=name, revision=1) for name in "ab"]
    metrics = {name: Metrics(name) for name in "ab"}
    before = Look(replicas, [], {name: reading(metrics[name], 0.0) for name in "ab"})
    for name, count, seconds in (("a", 3, 0.002), ("b", 1, 0.9)):
        for _ in range(count):
            metrics[name].requests.observe("mood", None, 200, seconds)
    now = Look(replicas, [], {"a": reading(metrics["a"], 1.0), "b": reading(metrics["b"], 2.0)})
    found = activity(before, now, 0.0)
    assert found.answers is not None
    assert found.answers.requests_per_second == 3.5
    assert found.answers.p50_seconds == pytest.approx(0.001 + 0.0015 * 2 / 3)
    assert [one.answers and one.answers.requests_per_second for one in found.replicas] == [3.0, 0.5]


def test_a_task_without_a_label_of_its_own_is_not_said_to_be_idle() -> None:
    metrics = Metrics("a", most_tasks=1)
    looks = []
    for when in (0.0, 1.0):
        for _ in range(3):
            metrics.requests.observe("mood", "d" * 64, 200, 0.01)
        metrics.requests.observe("news", "e" * 64, 200, 0.01)
        looks.append(Look([Replica(name="a", revision=1)], ["mood", "news"], {"a": reading(metrics, when)}))
    found = {one.task: one.answers for one in activity(*looks, unix_seconds=0.0).tasks}
    assert found["news"] is None
    assert found["mood"] is not None
    assert found["other"] is not None
    assert (found["mood"].requests_per_second, found["other"].requests_per_second) == (3.0, 1.0)


def test_versions_have_rates_of_their_own_and_shadows_are_counted_from_the_start() -> None:
    metrics = Metrics("a")
    metrics.requests.observe("mood", "d" * 64, 200, 0.01)  # a shadow alone gives its task no label
    metrics.requests.observe_shadow("mood", "c" * 64, {"agreed": 5, "failed": 1})
    looks = []
    for when in (0.0, 2.0):
        for digest, code, seconds in (("c" * 64, 500, 0.4), ("d" * 64, 200, 0.01), ("d" * 64, 200, 0.01)):
            metrics.requests.observe("mood", digest, code, seconds)
        looks.append(Look([Replica(name="a", revision=1)], ["mood"], {"a": reading(metrics, when)}))
    found = activity(*looks, unix_seconds=0.0)
    canary, live = found.versions
    assert (canary.version, live.version) == ("c" * 12, "d" * 12)
    assert (canary.answers.requests_per_second, canary.answers.failed_per_second) == (0.5, 0.5)
    assert (live.answers.requests_per_second, live.answers.failed_per_second) == (1.0, 0.0)
    assert canary.answers.p99_seconds == pytest.approx(0.25 + 0.25 * 0.99)
    (shadow,) = found.shadows
    assert (shadow.version, shadow.agreed, shadow.differed, shadow.failed, shadow.skipped) == ("c" * 12, 5, 0, 1, 0)


def test_a_replica_that_started_anew_counts_from_zero() -> None:
    old, new = Metrics("a"), Metrics("a")
    for metrics, count in ((old, 5), (new, 7)):
        for _ in range(count):
            metrics.requests.observe("mood", None, 200, 0.01)
    new.started.set(old.started._value.get() + 1)
    assert increase(reading(old, 0.0), reading(new, 1.0)).total("ken_requests_total") == 7


def test_a_series_that_was_removed_and_came_back_counts_from_zero() -> None:
    metrics = Metrics("a", most_tasks=1)
    for _ in range(3):
        metrics.requests.observe("mood", None, 200, 0.01)
    before = reading(metrics, 0.0)
    for task in ("news", "news", "news", "news", "mood", "mood", "mood", "mood", "mood", "mood", "mood"):
        metrics.requests.observe(task, None, 200, 0.01)
    now = reading(metrics, 1.0)
    assert min(increase(before, now).counts.values()) >= 0


def test_without_a_second_reading_nothing_is_said_and_what_is_wrong_is() -> None:
    metrics = Metrics("a")
    metrics.store_up.set(0)
    metrics.poisoned.set(1)
    silent = Replica(name="b", revision=1, silent_seconds=20.0)
    look = Look([Replica(name="a", revision=1), silent], ["mood"], {"a": reading(metrics, 0.0)}, {"b": "no route"})
    found = activity(None, look, 0.0)
    assert found.answers is None
    assert found.in_flight is None
    assert [one.answers for one in found.tasks] == [None]
    first, second = found.replicas
    assert first.trouble == ["the store does not answer", "its weights are in an unknown state"]
    assert second.trouble == ["has not reported for 20 s", "metrics: no route"]
    assert second.bytes_by_tier == {}


@pytest.mark.parametrize(
    ("share", "buckets", "expected"),
    [
        (0.5, {}, None),
        (0.5, {"0.1": 0, "+Inf": 0}, None),
        (0.5, {"0.1": 10, "+Inf": 10}, 0.05),
        (0.5, {"0.1": 0, "0.2": 10, "+Inf": 10}, 0.15),
        (0.95, {"0.1": 10, "+Inf": 20}, 0.1),
        (1.0, {"0.1": 10, "0.2": 20, "+Inf": 20}, 0.2),
    ],
)
def test_quantiles_are_those_of_prometheus(share: float, buckets: dict[str, float], expected: float | None) -> None:
    assert quantile(share, buckets) == (None if expected is None else pytest.approx(expected))


def test_text_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="html"):
        readings_of("<html>not metrics</html>", 0.0)


@pytest.mark.parametrize(
    "sample",
    [
        'ken_requests_total{task="mood",code="abc"} 1',
        'ken_requests_total{code="200"} 1',
        'ken_request_seconds_bucket{task="mood",stage="total",le="wide"} 1',
        'ken_request_seconds_bucket{task="mood",stage="total"} 1',
        "ken_cache_bytes 1",
        "ken_resident_bytes NaN",
        "ken_queue_rows +Inf",
        "ken_queue_rows 1e300",
    ],
)
def test_metrics_that_no_replica_gives_are_refused(sample: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the reason
        readings_of(f"{sample}\n", 0.0)


def test_metrics_of_others_are_passed_over() -> None:
    assert readings_of('up{replica="a"} NaN\nken_swaps_total{replica="a"} 2\n', 0.0)["a"].values == {
        ("ken_swaps_total", frozenset()): 2.0
    }
