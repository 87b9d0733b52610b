"""What a server did between two looks at it: by task, by replica and in all. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from serving.client import Replica
from serving.monitoring.readings import Increase, Reading, increase, quantile

_OTHER = "other"
"""The label of all tasks that have none of their own, see `serving.telemetry.request_metrics`."""

_VERSION_REQUESTS = "ken_version_requests_total"


@dataclass(frozen=True)
class Look:
    """What was seen of a server at one moment.

    Attributes:
        tasks: names of all tasks that the key may see.
        readings: of replicas' metrics, by their names.
        unread: why the metrics of the other replicas could not be read.
        held: where the replica that was asked holds a task's live version, by task.
    """

    replicas: Sequence[Replica]
    tasks: Sequence[str]
    readings: Mapping[str, Reading]
    unread: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """Requests that were answered. Rates are per second; None where nothing can be said yet.

    Attributes:
        failed: answers with a status of 500 or more.
        refused: answers with a status of 400 to 499, such as those over a limit.
        tokens: tokens that were generated.
    """

    requests_per_second: float
    failed_per_second: float
    refused_per_second: float
    tokens_per_second: float
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True)
class TaskActivity:
    """One task. `task` may be ``other``, ``unknown`` or ``@merge``, which are labels of the metrics."""

    task: str
    answers: Answers | None
    held: str | None


@dataclass(frozen=True)
class VersionActivity:
    """One version of a task.

    Attributes:
        version: the first 12 digits of its digest, or ``other``.
    """

    task: str
    version: str
    answers: Answers


_OUTCOMES = ("agreed", "differed", "failed", "skipped")


@dataclass(frozen=True)
class ShadowCounts:
    """Inputs copied for a version that is a shadow, by what became of them, since the replicas started."""

    task: str
    version: str
    agreed: int
    differed: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class ReplicaActivity:
    """One replica.

    Attributes:
        waiting_inputs: that wait for a forward pass, for their task or to be encoded.
        mixed_share: of the forward passes; None: there were none.
        bytes_by_tier: of deltas; ``base`` is the resident base.
        trouble: what is wrong, in words.
    """

    replica: str
    ready: bool | None
    in_flight: int | None
    held_tasks: int | None
    answers: Answers | None
    up_seconds: float | None
    waiting_inputs: int | None
    mixed_share: float | None
    swaps_per_second: float | None
    bytes_by_tier: dict[str, int]
    kv_bytes: int | None
    kv_budget_bytes: int | None
    running_texts: int | None
    waiting_texts: int | None
    trouble: list[str]


@dataclass(frozen=True)
class Activity:
    """What a server did between two looks at it.

    Attributes:
        tasks: those asked for most first.
        seconds: between the looks.
        versions: that requests resolved to lately, by task.
    """

    seconds: float
    answers: Answers | None
    in_flight: int | None
    tasks: list[TaskActivity]
    versions: list[VersionActivity]
    shadows: list[ShadowCounts]
    replicas: list[ReplicaActivity]


def activity(before: Look | None, now: Look, unix_seconds: float) -> Activity:
    """What a server did between two looks.

    Args:
        before: None: there was no other look, so rates are not known.
        unix_seconds: the time of `now`, from which replicas' uptimes are counted.
    """
    old = {} if before is None else before.readings
    counted = {name: increase(old[name], reading) for name, reading in now.readings.items() if name in old}
    everywhere = list(counted.values())
    in_flight = [replica.in_flight for replica in now.replicas]
    return Activity(
        seconds=max((one.seconds for one in everywhere), default=0.0),
        answers=_answers(everywhere),
        in_flight=None if None in in_flight else sum(map(int, filter(None, in_flight))),
        tasks=sorted(_tasks(now, everywhere), key=_asked_most),
        versions=sorted(_versions(everywhere), key=lambda one: (one.task, one.version)),
        shadows=_shadows(now.readings.values()),
        replicas=[
            _replica(found, now.readings.get(found.name), counted.get(found.name), now.unread, unix_seconds)
            for found in sorted(now.replicas, key=lambda replica: replica.name)
        ],
    )


def _tasks(now: Look, everywhere: Sequence[Increase]) -> Iterator[TaskActivity]:
    split = [one.split("task") for one in everywhere]
    labels = {label for by_task in split for label in by_task}
    asked = {label for by_task in split for label, one in by_task.items() if one.total("ken_requests_total")}
    for task in {*now.tasks, *asked}:
        unknown = _OTHER in labels and task not in labels  # it is counted among others
        found = [by_task.get(task, Increase(one.seconds)) for one, by_task in zip(everywhere, split, strict=True)]
        yield TaskActivity(task, None if unknown else _answers(found), now.held.get(task))


def _asked_most(one: TaskActivity) -> tuple[float, str]:
    return (-(one.answers.requests_per_second if one.answers else 0.0), one.task)


def _versions(everywhere: Sequence[Increase]) -> Iterator[VersionActivity]:
    found: defaultdict[tuple[str, str], list[Increase]] = defaultdict(list)
    for one in everywhere:
        for task, of_task in one.split("task").items():
            for version, of_version in of_task.split("version").items():
                if of_version.by(_VERSION_REQUESTS, "code"):  # shadows have versions, too
                    found[task, version].append(of_version)
    for (task, version), counted in found.items():
        answers = _answers(counted, _VERSION_REQUESTS, "ken_version_seconds_bucket")
        if answers is not None:
            yield VersionActivity(task, version, answers)


def _shadows(readings: Iterable[Reading]) -> list[ShadowCounts]:
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for reading in readings:
        for (name, labels), value in reading.values.items():
            if name == "ken_shadow_inputs_total":
                its = dict(labels)
                counts[its["task"], its["version"]][its["outcome"]] += int(value)
    return [
        ShadowCounts(task, version, **{outcome: found[outcome] for outcome in _OUTCOMES})
        for (task, version), found in sorted(counts.items())
    ]


def _answers(
    counted: Iterable[Increase], requests: str = "ken_requests_total", seconds: str = "ken_request_seconds_bucket"
) -> Answers | None:
    """The answers of all replicas together; None where no replica was read twice.

    Args:
        requests, seconds: the metrics that count them, and their times.
    """
    rates: defaultdict[str, float] = defaultdict(float)
    buckets: defaultdict[str, float] = defaultdict(float)
    read_twice = [one for one in counted if one.seconds > 0]
    if not read_twice:
        return None
    stage = {"stage": "total"} if seconds == "ken_request_seconds_bucket" else {}
    for one in read_twice:
        for bound, count in one.by(seconds, "le", **stage).items():
            buckets[bound] += count
        for code, count in one.by(requests, "code").items():
            rates["requests"] += count / one.seconds
            rates[_outcome(int(code))] += count / one.seconds
        rates["tokens"] += one.total("ken_generated_tokens_total") / one.seconds
    return Answers(
        requests_per_second=rates["requests"],
        failed_per_second=rates["failed"],
        refused_per_second=rates["refused"],
        tokens_per_second=rates["tokens"],
        p50_seconds=quantile(0.5, buckets),
        p95_seconds=quantile(0.95, buckets),
        p99_seconds=quantile(0.99, buckets),
    )


def _outcome(status: int) -> str:
    if status < 400:
        return "answered"
    return "refused" if status < 500 else "failed"


def _replica(
    found: Replica, reading: Reading | None, counted: Increase | None, unread: Mapping[str, str], unix_seconds: float
) -> ReplicaActivity:
    started = None if reading is None else reading.value("ken_started_timestamp_seconds")
    passes = 0.0 if counted is None else counted.total("ken_batch_rows_count")
    mixed = 0.0 if counted is None else counted.total("ken_batch_groups_count")
    return ReplicaActivity(
        replica=found.name,
        ready=found.ready,
        in_flight=found.in_flight,
        held_tasks=found.held_tasks,
        answers=None if counted is None else _answers([counted]),
        up_seconds=None if started is None else max(0.0, unix_seconds - started),
        waiting_inputs=_whole(reading, "ken_queue_rows", "ken_loading_rows"),
        mixed_share=mixed / passes if passes else None,
        swaps_per_second=counted.total("ken_swaps_total") / counted.seconds if counted and counted.seconds else None,
        bytes_by_tier=_bytes_by_tier(reading),
        kv_bytes=_whole(reading, "ken_kv_bytes"),
        kv_budget_bytes=_whole(reading, "ken_kv_budget_bytes"),
        running_texts=_whole(reading, "ken_running_texts"),
        waiting_texts=_whole(reading, "ken_waiting_texts"),
        trouble=list(_trouble(found, reading, unread)),
    )


def _whole(reading: Reading | None, *names: str) -> int | None:
    values = [] if reading is None else [reading.value(name) for name in names]
    known = [value for value in values if value is not None]
    return int(sum(known)) if known else None


def _bytes_by_tier(reading: Reading | None) -> dict[str, int]:
    if reading is None:
        return {}
    tiers = {tier: int(value) for tier, value in reading.by("ken_cache_bytes", "tier").items()}
    base = reading.value("ken_resident_bytes")
    return ({} if base is None else {"base": int(base)}) | tiers


def _trouble(found: Replica, reading: Reading | None, unread: Mapping[str, str]) -> Iterable[str]:
    if found.silent_seconds:
        yield f"has not reported for {found.silent_seconds:.0f} s"
    if found.name in unread:
        yield f"metrics: {unread[found.name]}"
    if reading is None:
        return
    for name, bad, words in (
        ("ken_store_up", 0.0, "the store does not answer"),
        ("ken_poisoned", 1.0, "its weights are in an unknown state"),
        ("ken_disk_up", 0.0, "its disk takes no deltas"),
        ("ken_base_file_changed", 1.0, "the base's file was changed"),
        ("ken_store_history_changed", 1.0, "the store was emptied or restored: see `ken adopt-store`"),
    ):
        if reading.value(name) == bad:
            yield words
