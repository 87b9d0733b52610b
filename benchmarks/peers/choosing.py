"""HAProxy in front of handlers that do nothing, with and without the rules that choose the home of a task."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from rich.table import Table

from benchmarks.peers.load import Load, Request, figures, post, send
from benchmarks.peers.process import Server
from benchmarks.report import Row, plain_table
from serving.launch.haproxy_binary import find_binary
from serving.launch.haproxy_homes import MAP, placing, servers_of
from serving.launch.homes_file import KnownHomes
from serving.launch.ports import free_port
from serving.placement.choices import BUCKETS, bucket_key

CONNECTIONS = 32
_HANDLERS = 3
_TASKS = 1000
_FILE = """\
global
    maxconn 4096
    nbthread 1
    tune.bufsize 65536
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 35s
    option redispatch 1
    balance leastconn
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend http-ken
backend http-ken
    http-reuse always
{servers}
"""


@dataclass(frozen=True)
class Arm:
    """A running HAProxy."""

    name: str
    port: int
    process: psutil.Process


@dataclass(frozen=True)
class Costs:
    """Requests a second, and HAProxy's processor time for one of them in microseconds, of every turn."""

    rates: dict[str, list[float]]
    seconds: dict[str, list[float]]

    @property
    def ratio(self) -> float:
        """The rate with rules over that without, both of the same turn: the median."""
        pairs = zip(self.rates["placement"], self.rates["leastconn"], strict=True)
        return statistics.median(placed / plain for placed, plain in pairs)

    def rows(self) -> list[Row]:
        found = []
        for name in self.rates:
            found.append(Row(f"choosing: {name}: requests/s", statistics.median(self.rates[name]), "1/s"))
            found.append(
                Row(f"choosing: {name}: HAProxy's processor time", statistics.median(self.seconds[name]), "us")
            )
        return found

    def table(self) -> Table:
        title = f"no-op handlers, {CONNECTIONS} connections, {_TASKS} tasks"
        table = plain_table(title, ["policy", "requests/s", "HAProxy's µs a request"])
        for name in self.rates:
            median = statistics.median(self.seconds[name])
            table.add_row(name, f"{statistics.median(self.rates[name]):,.0f}", f"{median:.1f}")
        return table


class Choosing:
    """Two HAProxies in front of the same handlers."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self._arms = arms

    def measured(self, repeats: int, seconds: float) -> Costs:
        """Ask both in turns."""
        rates = {arm.name: list[float]() for arm in self._arms}
        taken = {arm.name: list[float]() for arm in self._arms}
        for _ in range(repeats):
            for arm in self._arms:
                rate, processor = _asked(arm, seconds)
                rates[arm.name].append(rate)
                taken[arm.name].append(processor * 1e6)
        return Costs(rates, taken)


def _asked(arm: Arm, seconds: float) -> tuple[float, float]:
    """Requests a second, and HAProxy's processor seconds for one of them."""
    body = json.dumps({"inputs": "How far is it to Denver?"}).encode()
    asked = [post(arm.port, f"/v1/tasks/t{i}/predict", body) for i in range(_TASKS)]
    requests = [Request((i,), 0, arm.port, data) for i, data in enumerate(asked)]
    before = sum(arm.process.cpu_times()[:2])
    replies = send(Load(requests, list(range(_TASKS)), CONNECTIONS, 0.5, seconds))
    processor = sum(arm.process.cpu_times()[:2]) - before
    if bad := [reply for reply in replies.replies if reply.status != 200]:
        raise SystemExit(f"no figures: {len(bad)} requests failed, the first with status {bad[0].status}")
    return figures(replies, seconds).rate, processor / len(replies.replies)


@contextmanager
def choosing(data_dir: Path) -> Iterator[Choosing]:
    """Start the handlers and the two HAProxies."""
    with tempfile.TemporaryDirectory(dir=data_dir) as name, ExitStack() as stack:
        folder = Path(name)
        command = [sys.executable, "-m", "benchmarks.peers.nothing", "{port}"]
        handlers = [stack.enter_context(Server(command, {}, "/", folder / "handler.log")) for _ in range(_HANDLERS)]
        lines = [f"    server SERVE_REPLICA__ken-Replica-{i} 127.0.0.1:{h.port}" for i, h in enumerate(handlers)]
        arms = [_arm(stack, folder, "leastconn", lines), _arm(stack, folder, "placement", lines)]
        yield Choosing(arms)


def _arm(stack: ExitStack, folder: Path, name: str, servers: Sequence[str]) -> Arm:
    port, own = free_port(), folder / name
    own.mkdir()
    text = _FILE.format(port=port, servers="\n".join(servers))
    if name == "placement":
        ids = {f"replica-{i}": str(i) for i in range(_HANDLERS)}
        names = list(ids)
        keys = [f"t{i}" for i in range(_TASKS)] + [bucket_key(i) for i in range(BUCKETS)]
        homes = {key: ((names[i % _HANDLERS], names[(i + 1) % _HANDLERS]),) for i, key in enumerate(keys)}
        (own / MAP).write_text(KnownHomes(homes, ids).map_for(servers_of(text)))
        text = placing(text, own, 35)
    file = own / "haproxy.cfg"
    file.write_text(text)
    started = subprocess.Popen([find_binary(), "-db", "-f", str(file)], stderr=subprocess.DEVNULL)
    stack.callback(started.wait)
    stack.callback(started.kill)
    _await_answer(port)
    return Arm(name, port, psutil.Process(started.pid))


def _await_answer(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit("HAProxy does not answer")
