"""Metrics of answered requests and of their shadows, by task and by version, with a bounded number of labels."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

from serving.telemetry.generation_metrics import GenerationFacts
from serving.telemetry.label_budget import LabelBudget

OTHER = "other"
"""The label of all tasks and versions that have no label of their own."""
UNKNOWN = "unknown"
"""The label of requests for tasks that do not exist. Their names are not used, since clients can invent any number."""
MERGED_TASKS = "@merge"
"""The label of requests for merges of tasks, of which clients can invent any number. No task can have this name."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of every histogram of times."""

_DIFFERENCES = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_VERSIONS_A_TASK = 2  # on average, of the tasks with a label: the live version and a canary
_VERSION_LENGTH = 12


class RequestMetrics:
    """Counts and times of requests by task, by stage and by version. Callable from any thread.

    Series exist for the `most_tasks` tasks asked for most and for twice as many of their versions. When a task or a
    version loses its place, its series are removed, and its later requests count as ``other``. One lock covers the
    choice of labels and the counting; otherwise a request could bring back a series that was just removed.
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
        self._shadow_inputs = Counter(
            "ken_shadow_inputs", "Inputs of requests copied for a shadow, by what became of them",
            ["task", "version", "outcome"], registry=registry,
        )  # fmt: skip
        self._shadow_difference = Histogram(
            "ken_shadow_difference", "Largest difference of scores, or 1 - cosine, between an input's two answers",
            ["task"], buckets=_DIFFERENCES, registry=registry,
        )  # fmt: skip
        self._first_token = Histogram(
            "ken_first_token_seconds", "From a request to the first token of its text", ["task"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._token_gap = Histogram(
            "ken_token_gap_seconds", "From a token of a text to the next one", ["task"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._prompt_tokens = Counter("ken_prompt_tokens", "Tokens of prompts", ["task"], registry=registry)
        self._generated_tokens = Counter("ken_generated_tokens", "Tokens generated", ["task"], registry=registry)
        self._texts = Counter(
            "ken_texts", "Texts generated, by how they ended: stop, length or unfinished", ["task", "finish"],
            registry=registry,
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
            task: None if the request names no task that exists; `MERGED_TASKS` if it wants tasks merged.
            digest: of the version or merge that the request resolved to; None if it failed before that.
            code: HTTP status; 499 if the client left before the answer.
            seconds: from the request's arrival to its answer.
            stages: names and seconds of the stages that the request went through, if it was answered.
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

    def observe_texts(self, task: str | None, facts: GenerationFacts) -> None:
        """Count what a request had generated, in addition to the request itself.

        Args:
            task: as in `observe`.
        """
        with self._lock:
            label = self._task_label(task)
            self._child(self._prompt_tokens, label).inc(facts.prompt_tokens)
            self._child(self._generated_tokens, label).inc(facts.generated)
            for finish, texts in facts.ends.items():
                self._child(self._texts, label, finish).inc(texts)
            if facts.first is not None:
                self._child(self._first_token, label).observe(facts.first)
            for gap in facts.gaps:
                self._child(self._token_gap, label).observe(gap)

    def observe_shadow(
        self,
        task: str,
        digest: str,
        outcomes: Mapping[Literal["agreed", "differed", "failed", "skipped"], int],
        differences: Iterable[float] = (),
    ) -> None:
        """Count the inputs of one copy of a request for a shadow. The request itself was answered and counted before.

        Args:
            digest: of the shadow's version.
            outcomes: how many of the inputs came to what.
            differences: of inputs, see `serving.routing.agreement.Comparison`.
        """
        with self._lock:
            label = task if task in self._tasks else OTHER  # not a use: a shadow must not earn its task a label
            version = self._version_label(label, digest)
            for outcome, inputs in outcomes.items():
                if inputs:
                    self._child(self._shadow_inputs, label, version, outcome).inc(inputs)
            for difference in differences:
                self._child(self._shadow_difference, label).observe(difference)

    # Only to be called with the lock held

    def _task_label(self, task: str | None) -> str:
        if task is None:
            return UNKNOWN
        if task == MERGED_TASKS:
            return MERGED_TASKS
        shared = task in (OTHER, UNKNOWN)  # a task with one of these names shares the series, which must not be removed
        return task if not shared and self._tasks.use(task) else OTHER

    def _version_label(self, task_label: str, digest: str) -> str:
        version = digest[:_VERSION_LENGTH]
        shared = task_label in (OTHER, UNKNOWN, MERGED_TASKS)
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
        """Remove all series whose labels begin with these."""
        for family, found in [key for key in self._series if key[1][: len(labels)] == labels]:
            family.remove(*found)
            del self._series[family, found]
