"""Metrics of answered requests and of their shadows, by task and by version, however many tasks there are."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

from serving.telemetry.label_budget import LabelBudget

OTHER = "other"
"""Label of the tasks, and of the versions, that have none of their own."""
UNKNOWN = "unknown"
"""Label of requests for tasks that do not exist: their names are anybody's choice."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of every histogram of times."""

_DIFFERENCES = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_VERSIONS_A_TASK = 2  # on average of those with a label: what is live, and a canary beside it
_VERSION_LENGTH = 12


class RequestMetrics:
    """Requests and their times by task, by stage and by version. Callable from any thread.

    Series exist for the `most_tasks` tasks asked for most and for twice as many of their versions; those of a task
    or version that loses its place are removed, and what comes later counts as ``other``. Choosing the labels and
    counting happen under one lock: otherwise a request could bring back a series that was just removed.
    """

    def __init__(self, registry: CollectorRegistry, most_tasks: int) -> None:
        self._requests = Counter("ken_requests", "Requests answered", ["task", "code"], registry=registry)
        self._request_seconds = Histogram(
            "ken_request_seconds", "Time of a request by stage", ["task", "stage"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._version_requests = Counter(
            "ken_version_requests", "Requests answered, by the version they resolved to", ["task", "version", "code"],
            registry=registry,
        )  # fmt: skip
        self._version_seconds = Histogram(
            "ken_version_seconds", "Time of a request, by the version it resolved to", ["task", "version"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._shadow_requests = Counter(
            "ken_shadow_requests", "Copies of requests for a shadow, by what became of them",
            ["task", "version", "outcome"], registry=registry,
        )  # fmt: skip
        self._shadow_difference = Histogram(
            "ken_shadow_difference", "Largest difference of scores, or 1 - cosine, between an answer and its shadow's",
            ["task"], buckets=_DIFFERENCES, registry=registry,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._tasks: LabelBudget[str] = LabelBudget(most_tasks, self._remove_task)
        self._versions: LabelBudget[tuple[str, str]] = LabelBudget(_VERSIONS_A_TASK * most_tasks, self._remove)
        self._series: dict[tuple[Any, tuple[str, ...]], Any] = {}

    def observe(
        self,
        task: str | None,
        digest: str | None,
        code: int,
        seconds: float,
        stages: Iterable[tuple[str, float]] = (),
    ) -> None:
        """Count one answered request.

        Args:
            task: None where the request names no task that exists.
            digest: what it resolved to; None where it did not come so far.
            code: HTTP status; 499 where the client left first.
            seconds: from the request's arrival to its answer.
            stages: names and seconds of the parts of its way, for an answer that has them.
        """
        with self._lock:
            label = self._task_label(task)
            self._child(self._requests, label, str(code)).inc()
            self._child(self._request_seconds, label, "total").observe(seconds)
            for stage, part in stages:
                self._child(self._request_seconds, label, stage).observe(part)
            if digest is not None:
                version = self._version_label(label, digest)
                self._child(self._version_requests, label, version, str(code)).inc()
                self._child(self._version_seconds, label, version).observe(seconds)

    def observe_shadow(
        self,
        task: str,
        digest: str,
        outcome: Literal["agreed", "differed", "failed", "skipped"],
        difference: float | None = None,
    ) -> None:
        """Count one shadow of a request that was answered, and counted, before.

        Args:
            digest: the shadow's.
            difference: see `serving.routing.agreement.Comparison`.
        """
        with self._lock:
            label = task if task in self._tasks else OTHER  # no use more: a shadow makes no task asked for more
            self._child(self._shadow_requests, label, self._version_label(label, digest), outcome).inc()
            if difference is not None:
                self._child(self._shadow_difference, label).observe(difference)

    # With the lock held

    def _task_label(self, task: str | None) -> str:
        if task is None:
            return UNKNOWN
        shared = task in (OTHER, UNKNOWN)  # a task of such a name has no series of its own to remove
        return task if not shared and self._tasks.use(task) else OTHER

    def _version_label(self, task_label: str, digest: str) -> str:
        version = digest[:_VERSION_LENGTH]
        shared = task_label in (OTHER, UNKNOWN)
        return version if not shared and self._versions.use((task_label, version)) else OTHER

    def _child(self, family: Any, *labels: str) -> Any:
        key = (family, labels)
        child = self._series.get(key)
        if child is None:
            child = self._series[key] = family.labels(*labels)
        return child

    def _remove_task(self, task: str) -> None:
        self._versions.drop(lambda key: key[0] == task)
        self._remove((task,))

    def _remove(self, labels: tuple[str, ...]) -> None:
        """Remove the series whose labels begin so."""
        for family, found in [key for key in self._series if key[1][: len(labels)] == labels]:
            family.remove(*found)
            del self._series[family, found]
