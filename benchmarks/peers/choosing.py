"""The cost of choosing a home in HAProxy: this project's server, whose handler does nothing, with and without rules."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.peers.load import Load, Request, figures, post, send
from benchmarks.peers.process import Server
from benchmarks.report import Row, plain_table
from serving.store import Store

CONNECTIONS = 32
_SETTLE_SECONDS = 10.0
PLACED, LEASTCONN = "placement", "leastconn"


@dataclass(frozen=True)
class Costs:
    """Requests a second, and HAProxy's processor time for one of them in microseconds, of every turn, by arm."""

    rates: Mapping[str, list[float]]
    taken: Mapping[str, list[float]]

    @property
    def ratio(self) -> float:
        """The rate with rules over that without, both of the same turn: the median."""
        pairs = zip(self.rates[PLACED], self.rates[LEASTCONN], strict=True)
        return statistics.median(placed / plain for placed, plain in pairs)

    def rows(self) -> list[Row]:
        rates = [
            Row(f"choosing: {arm}: requests/s", statistics.median(rate), "1/s") for arm, rate in self.rates.items()
        ]
        name = "choosing: {}: HAProxy's processor time a request"
        return [*rates, *(Row(name.format(arm), statistics.median(taken), "us") for arm, taken in self.taken.items())]

    def table(self) -> Table:
        title = f"a handler that does nothing, {CONNECTIONS} connections"
        table = plain_table(title, ["policy", "requests/s", "HAProxy's µs a request"])
        for arm, rate in self.rates.items():
            table.add_row(arm, f"{statistics.median(rate):,.0f}", f"{statistics.median(self.taken[arm]):.1f}")
        return table


class Choosing:
    """Two servers, one of which has a placement.

    Args:
        tasks: that are asked, one after the other.
    """

    def __init__(self, arms: Mapping[str, Server], tasks: Sequence[str]) -> None:
        self._arms = arms
        self._tasks = tasks

    def measured(self, repeats: int, seconds: float) -> Costs:
        """Ask both in turns; a first turn does not count."""
        rates: dict[str, list[float]] = {arm: [] for arm in self._arms}
        taken: dict[str, list[float]] = {arm: [] for arm in self._arms}
        for turn in range(repeats + 1):
            for arm, server in self._arms.items():
                rate, processor = _asked(server, self._tasks, seconds)
                if turn:
                    rates[arm].append(rate)
                    taken[arm].append(processor * 1e6)
        return Costs(rates, taken)


def _asked(server: Server, tasks: Sequence[str], seconds: float) -> tuple[float, float]:
    """Requests a second, and HAProxy's processor seconds for one of them."""
    body = json.dumps({"inputs": "How far is it to Denver?"}).encode()
    asked = [post(server.port, f"/v1/tasks/{task}/predict", body) for task in tasks]
    requests = [Request((i,), 0, server.port, data) for i, data in enumerate(asked)]
    before = server.processor_seconds("haproxy")
    replies = send(Load(requests, list(range(len(tasks))), CONNECTIONS, 0.0, seconds))
    processor = server.processor_seconds("haproxy") - before
    if bad := [reply for reply in replies.replies if reply.status != 200]:
        raise SystemExit(f"no figures: {len(bad)} requests failed, the first with status {bad[0].status}")
    return figures(replies, seconds).rate, processor / len(replies.replies)


@contextmanager
def choosing(placed: Mapping[str, str], leastconn: Mapping[str, str], log: Path) -> Iterator[Choosing]:
    """Start the two servers, with these settings."""
    with ExitStack() as stack:
        arms = {PLACED: placed, LEASTCONN: leastconn}
        servers = {arm: stack.enter_context(_server(settings, log)) for arm, settings in arms.items()}
        yield Choosing(servers, _as_many_at_each_home(Store(placed["redis_url"])))


def _as_many_at_each_home(store: Store) -> list[str]:
    """Tasks of all replicas in turns: here no load is measured by which they could be placed evenly."""
    time.sleep(_SETTLE_SECONDS)
    placement = store.placements.read()
    assert placement is not None
    homes = {name: [task for task, at in placement.tasks.items() if at.homes == (name,)] for name in placement.replicas}
    return [task for some in zip(*homes.values(), strict=False) for task in some]


def _server(settings: Mapping[str, str], log: Path) -> Server:
    environment = {f"KEN_{name.upper()}": value for name, value in settings.items()} | {"KEN_PORT": "{port}"}
    return Server([sys.executable, "-m", "benchmarks.peers.nothing"], environment, "/readyz", log)
