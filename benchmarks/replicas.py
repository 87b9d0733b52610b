"""Several replicas behind HAProxy: requests sent to the homes of their tasks, beside other ways to choose a replica.

    python -m benchmarks.replicas [--quick] [--json FILE] [--texts FOLDER] [--models FOLDER]

Three replicas of this project's server share the machine's cores. Closed-loop clients ask tasks drawn by Zipf's law
(`benchmarks.peers`); every task has its own delta of one short fine-tune of MiniLM-L6 (`benchmarks.many_tasks`). Every
answer must have status 200 and name the digest of its task.

- placement: as `ken serve --replicas 3` does it. The load runs until the placement has been made anew from measured
  rates and loaded, and is then counted;
- leastconn: the same server with `KEN_PLACEMENT=off`, so Ray's balancing chooses the replica with the fewest requests;
- rendezvous: each task has the replica that hashing gives it, whatever it has to do; *with a bound*: half as many again
  as its share, then the second one. Both are placements that this benchmark writes in place of the server's.

*At home*: the share of requests that were answered by a home of their task. Where there are no homes, by the replica
that answered the task most. *On the device*: the share of requests that found their delta on the device. *Balance*:
requests of the busiest replica over the mean. Figures of one way are of one server; the ways follow one another.

The cost of choosing is measured with a handler that answers every request at once, with and without a placement, in
turns.

`--quick`: shorter runs, 20 tasks instead of 60; 4 minutes instead of 9, most of them starts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
from rich.table import Table

from benchmarks.bars import Bar
from benchmarks.fine_tunes import tasks as fine_tuned_tasks
from benchmarks.fine_tunes import with_fine_tune_options
from benchmarks.many_tasks import Published, derive, publish
from benchmarks.peers.choosing import choosing
from benchmarks.peers.load import Figures, Load, Replies, draw, figures, send
from benchmarks.peers.scraped import Counts, scraped
from benchmarks.peers.systems import System, ken
from benchmarks.report import Row, plain_table, report, with_shared_options
from ken_core import open_base, open_tuned
from serving.data_dir import default_data_dir
from serving.demo.prepare import demo_base
from serving.placement.plan import Homes, Placement
from serving.placement.rendezvous import order
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.terminal import say

REPLICAS = 3
_DRAWN = 5000
_TRAINED = 512
"""Examples of the fine-tune. How good its answers are does not matter here."""
_LEASE_SECONDS = 3600.0
_ON_DEVICE = 0.4
"""The share of the tasks that a replica's device budget holds."""

BARS = (
    Bar("home", "3 replicas, 12 tasks, Zipf, 16 clients: requests at home", ">=", 0.95),
    Bar("swaps", "the same without mixed batches: swaps a request over leastconn's", "<=", 0.5),
    Bar("on-device", "3 replicas that hold 40 % of the tasks each: requests on the device", ">=", 0.97),
    Bar("balance", "12 tasks: requests of the busiest replica over the mean", "<=", 1.3),
    Bar("proxy-cost", "no-op handlers, 32 connections: rate over leastconn's", ">=", 0.95),
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured: tasks at home, tasks within budgets, clients; seconds that settle and that count."""

    tasks: int
    many: int
    clients: int
    settle: float
    seconds: float
    repeats: int


FULL = Sizes(tasks=12, many=60, clients=16, settle=40.0, seconds=20.0, repeats=5)
QUICK = Sizes(tasks=12, many=20, clients=16, settle=20.0, seconds=6.0, repeats=3)


@dataclass(frozen=True)
class Way:
    """A way to choose the replica.

    Attributes:
        hashing: "" for what the server does by itself; else how this benchmark places tasks, and whether each has a
            second replica.
    """

    name: str
    placement: str = "auto"
    hashing: str = ""


PLACED, LEASTCONN = Way("placement"), Way("leastconn", "off")
WAYS = (PLACED, LEASTCONN, Way("rendezvous", hashing="alone"), Way("rendezvous with a bound", hashing="bounded"))


@dataclass(frozen=True)
class Result:
    """What one way came to in one setting: figures, shares of requests, swaps a request, busiest over mean."""

    setting: str
    way: Way
    figures: Figures
    home: float
    on_device: float
    swaps: float
    balance: float

    def rows(self) -> list[Row]:
        name = f"{self.setting}, {self.way.name}"
        return [
            Row(f"{name}: requests/s", self.figures.rate, "1/s"),
            Row(f"{name}: p50", self.figures.p50 * 1000, "ms"),
            Row(f"{name}: p99", self.figures.p99 * 1000, "ms"),
            Row(f"{name}: at home", self.home, "ratio"),
            Row(f"{name}: on the device", self.on_device, "ratio"),
            Row(f"{name}: swaps a request", self.swaps, "1"),
            Row(f"{name}: busiest over mean", self.balance, "ratio"),
        ]


@dataclass(frozen=True)
class Place:
    """What all servers share: a store with the tasks, and questions for them."""

    sizes: Sizes
    folder: Path
    url: str
    published: Sequence[Published]
    questions: Sequence[str]

    @property
    def names(self) -> list[str]:
        return [task.name for task in self.published]

    def settings(self, way: Way, **more: str) -> dict[str, str]:
        own = {"base": demo_base(), "redis_url": self.url, "replicas": str(REPLICAS), "placement": way.placement}
        return own | {"data_dir": str(self.folder / "data"), "placement_seconds": "5"} | more


def main() -> None:
    data_dir = Path(os.environ.get("KEN_DATA_DIR") or default_data_dir()).expanduser()
    parser = with_shared_options(argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None))
    options = with_fine_tune_options(parser).parse_args()
    os.environ.setdefault("NUMBA_CACHE_DIR", str(data_dir / "numba"))
    sizes = QUICK if options.quick else FULL
    with _prepared(sizes, data_dir, options.texts, options.models) as place:
        home = [_result(place, way, f"{sizes.tasks} tasks", sizes.tasks) for way in WAYS]
        swaps = [
            _result(place, way, f"{sizes.tasks} tasks, not mixed", sizes.tasks, mixed="off")
            for way in (PLACED, LEASTCONN)
        ]
        budget = str(int(_bytes_of_a_task(place) * sizes.many * _ON_DEVICE))
        setting = f"{sizes.many} tasks, {_ON_DEVICE:.0%} fit"
        device = [_result(place, way, setting, sizes.many, packed_bytes=budget) for way in WAYS]
        say("choosing, with a handler that does nothing")
        log, apart = place.folder / "log", {"namespace": "apart"}
        with choosing(place.settings(PLACED), place.settings(LEASTCONN, **apart), log) as servers:
            costs = servers.measured(sizes.repeats, sizes.seconds / 2)
    results = [*home, *swaps, *device]
    bars = [
        _bar("home", home[0].home),
        _bar("swaps", swaps[0].swaps / swaps[1].swaps, f"{swaps[1].setting}, {LEASTCONN.name}: swaps a request"),
        _bar("on-device", device[0].on_device),
        _bar("balance", home[0].balance),
        _bar("proxy-cost", costs.ratio, "choosing: leastconn: requests/s"),
    ]
    rows = [row for result in results for row in result.rows()] + costs.rows() + bars
    title = f"MiniLM-L6, {REPLICAS} replicas, {sizes.clients} clients, Zipf"
    report(title, rows, options.json, [_table(title, results), costs.table(), _judged(bars)])


def _bar(name: str, value: float, against: str | None = None) -> Row:
    return next(bar for bar in BARS if bar.name == name).row(value, against)


def _judged(rows: Sequence[Row]) -> Table:
    table = plain_table("bars", ["policy", "wanted", "value", ""])
    for bar, row in zip(BARS, rows, strict=True):
        table.add_row(bar.what, bar.wanted, f"{row.value:.3f}", "met" if bar.is_met(row.value) else "missed")
    return table


def _table(title: str, results: Sequence[Result]) -> Table:
    columns = ["requests/s", "p50 ms", "p99 ms", "at home", "on the device", "swaps a request", "busiest / mean"]
    table = plain_table(title, ["policy", *columns])
    for r in results:
        f = r.figures
        shares = (f"{r.home:.3f}", f"{r.on_device:.3f}", f"{r.swaps:.3f}", f"{r.balance:.2f}")
        name = f"{r.setting}: {r.way.name}"
        table.add_row(name, f"{f.rate:,.0f}", f"{f.p50 * 1000:,.1f}", f"{f.p99 * 1000:,.0f}", *shares)
    return table


@contextmanager
def _prepared(sizes: Sizes, data_dir: Path, texts: Path, models: Path) -> Iterator[Place]:
    data_dir.mkdir(parents=True, exist_ok=True)
    task = fine_tuned_tasks(texts)[0]
    questions = [example.text for example in task.test[:200]]
    short = replace(task, train=task.train[:_TRAINED], recipe=replace(task.recipe, epochs=1))
    base, tuned = open_base(demo_base()), open_tuned(str(short.fine_tune(0, models)))
    with tempfile.TemporaryDirectory(dir=data_dir) as name, ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(embedded_store(folder))
        store = Store(url)
        say(f"publishing {sizes.many} tasks")
        deltas = derive(base, tuned, sizes.many)
        published = [publish(delta, f"t{i:02d}", base, store, folder) for i, delta in enumerate(deltas)]
        store.connection.close()
        yield Place(sizes, folder, url, published, questions)


def _result(place: Place, way: Way, setting: str, tasks: int, **settings: str) -> Result:
    """Start a server, have it settle under the load, and count."""
    say(f"{setting}: {way.name}")
    store = Store(place.url)
    if way.hashing:
        assert store.placements.lead("benchmark", _LEASE_SECONDS)
    try:
        with ken(place.settings(way, **settings), place.folder / "log", way.name) as system:
            if way.hashing:
                _place_by_hashing(store, place.names[:tasks], bounded=way.hashing == "bounded")
            _ask(place, system, tasks, place.sizes.settle, check=False)
            before = scraped(system.servers[0])
            replies = _ask(place, system, tasks, place.sizes.seconds)
            counted = scraped(system.servers[0]).since(before)
    finally:
        store.placements.retire("benchmark")
        store.connection.close()
    found = figures(replies, place.sizes.seconds)
    return Result(setting, way, found, _home(way, counted), counted.on_device, counted.swaps, counted.balance)


def _home(way: Way, counted: Counts) -> float:
    return counted.at_home if way is PLACED else counted.where_asked_most


def _place_by_hashing(store: Store, tasks: Sequence[str], *, bounded: bool) -> None:
    """Write a placement by rendezvous hashing, once every replica is there."""
    deadline = time.monotonic() + 60
    while len(there := sorted(store.placements.present())) < REPLICAS:
        assert time.monotonic() < deadline, f"found {there}, expected {REPLICAS} replicas"
        time.sleep(0.2)
    before = store.placements.read()
    epoch = 1 + (before.epoch if before else 0)
    homes = {task: order(task, there) for task in tasks}
    placed = {task: Homes((names[0],), names[1] if bounded else None) for task, names in homes.items()}
    assert store.placements.write(Placement(epoch, tuple(there), placed), "benchmark")


def _ask(place: Place, system: System, tasks: int, seconds: float, *, check: bool = True) -> Replies:
    """Have the clients ask for so long, and check the answers."""
    pairs = draw(range(tasks), range(len(place.questions)), "Zipf", _DRAWN, seed=0)
    places = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    requests = [system.request(task, place.names[task], text, place.questions[text]) for task, text in places]
    replies = send(Load(requests, [places[pair] for pair in pairs], place.sizes.clients, 0.0, seconds))
    for reply in replies.replies if check else ():
        wanted = place.published[requests[reply.request].tasks[0]].digest
        if reply.status != 200 or orjson.loads(reply.body)["digest"] != wanted:
            raise SystemExit(f"no figures: status {reply.status}, expected digest {wanted}, found {reply.body[:300]!r}")
    return replies


def _bytes_of_a_task(place: Place) -> float:
    """Bytes of one task on the device: all tasks' in one replica, by their number."""
    say("the size of a task on the device")
    settings: Mapping[str, str] = place.settings(LEASTCONN) | {"replicas": "1"}
    with ken(settings, place.folder / "log", "size") as system:
        _ask(place, system, place.sizes.many, 15.0)
        counted = scraped(system.servers[0])
    return statistics.mean(counted.packed_bytes) / counted.tasks_asked


if __name__ == "__main__":
    main()
