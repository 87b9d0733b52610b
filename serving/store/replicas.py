"""The replicas: which revision each has seen, where its metrics are, and since when it is out of touch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from serving.store.connection import Connection

IN_TOUCH_SECONDS = 15.0
"""A replica that has not reported for this long is out of touch: it may answer from what it knew before."""
EXPECTED_SECONDS = 3600.0
"""A replica that has not reported for this long is no longer expected to: its node is taken to be gone for good."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Report:
    """What is known of one replica."""

    replica: str
    revision: int
    """The store's latest revision that the replica had seen when it reported."""
    address: str
    """``host:port`` of the replica's metrics; empty where there are none."""
    age: float
    """Seconds since the replica reported, by the clock of the store."""
    host: str
    process: str
    """Names the replica's process among all that the host ever runs."""
    keeps: str | None = None
    """The epoch of the earlier history that the replica keeps to, see `Lineage`; None where it answers by the store."""

    @property
    def in_touch(self) -> bool:
        return self.age < IN_TOUCH_SECONDS

    def has_seen(self, revision: int) -> bool:
        """Whether the replica is known to answer by a revision. One out of touch is not known to have seen anything."""
        return self.in_touch and self.revision >= revision


@dataclass(frozen=True)
class Spread:
    """Which of the expected replicas are known to answer by a revision. Each is in `seen` or in `pending`."""

    seen: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    silent: dict[str, float] = field(default_factory=dict)
    """Seconds since each replica that is out of touch reported."""


class Replicas:
    """What replicas report about themselves. A replica is expected to report until it says that it ends.

    All times are the store's, since the clocks of two hosts may differ.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._key = connection.control_key("reports")

    def report(self, replica: str, revision: int, address: str = "", keeps: str | None = None) -> None:
        """Record that a replica, which runs in this process, is alive and has seen `revision`.

        Args:
            address: ``host:port`` of the replica's metrics; empty where there are none.
            keeps: the epoch of the earlier history that the replica keeps to, if it does.
        """
        told = {"revision": revision, "address": address, "keeps": keeps, **_here()}
        self._connection.run("report", [self._key], replica, orjson.dumps(told))

    def retire(self, replica: str) -> None:
        """No longer expect a replica."""
        with self._connection.store_errors:
            self._connection.client.hdel(self._key, replica)

    def retire_dead(self) -> None:
        """No longer expect replicas of this host whose process has ended without a word.

        Of several containers with one host name, the processes of another one are taken to have ended: it is mostly an
        earlier run of this container. A replica that runs there all the same reports again within a second.
        """
        here = _here()
        for report in self.reports().values():
            if report.host == here["host"] and _named(int(report.process.split()[0])) != report.process:
                self.retire(report.replica)

    def is_elsewhere(self, replica: str) -> bool:
        """Whether a replica of this name is in touch whose process cannot be of this container."""
        report = self.reports().get(replica)
        return report is not None and report.in_touch and _container(report.process) != _container(_here()["process"])

    def reports(self) -> dict[str, Report]:
        """The last report of each expected replica, by the replica's name, sorted."""
        now, *rows = self._connection.run("reports", [self._key], EXPECTED_SECONDS)
        found = (_report(name.decode(), row, float(now)) for name, row in zip(rows[::2], rows[1::2], strict=True))
        return {report.replica: report for report in sorted(found, key=lambda report: report.replica)}

    def wait(self, revision: int, timeout: float) -> Spread:
        """Wait up to `timeout` seconds until every expected replica has seen `revision`."""
        deadline = time.monotonic() + timeout
        while (spread := self.spread(revision)).pending and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return spread

    def spread(self, revision: int) -> Spread:
        """Which replicas have seen `revision`."""
        return _spread(self.reports().values(), revision)


def _spread(reports: Iterable[Report], revision: int) -> Spread:
    seen, pending, silent = list[str](), list[str](), dict[str, float]()
    for report in reports:
        (seen if report.has_seen(revision) else pending).append(report.replica)
        if not report.in_touch:
            silent[report.replica] = report.age
    return Spread(tuple(seen), tuple(pending), silent)


def _report(name: str, row: bytes, now: float) -> Report:
    when, _, text = row.partition(b" ")
    return Report(replica=name, age=max(0.0, now - float(when)), **orjson.loads(text))


def _here() -> dict[str, str]:
    return {"host": os.uname().nodename, "process": _named(os.getpid()) or ""}


def _named(process: int) -> str | None:
    """A name of a process that no later process of the host has; None where it has ended. See proc(5)."""
    try:
        _, _, status = Path(f"/proc/{process}/stat").read_text().rpartition(") ")
        state, *_, started = status.split()[:20]
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return _named_without_proc(process)
    return None if state == "Z" else f"{process} {started} {namespace}"


def _container(process: str) -> str:
    return process.partition(" ")[2].partition(" ")[2]


def _named_without_proc(process: int) -> str | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return str(process)
