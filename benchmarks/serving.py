"""Serving many tasks over HTTP: this project's server, the same server without the exchange, and other ways to serve
the same fine-tunes.

    python -m benchmarks.serving [--quick] [--json FILE] [--texts FOLDER] [--models FOLDER]

Closed-loop clients in a process of their own (`benchmarks.peers.clients`) send one question in each request: TREC's
test questions if `--texts` holds them, else the demonstration's news. All tasks come from one fine-tune of MiniLM-L6
(trained on first use, kept in `--models`); every task has its own delta, which keeps 10 % (`benchmarks.many_tasks`) and
is stored with the codec `raw`. Every system computes with the same number of threads, in batches of at most 32. Its
answers must be those of the same replica called in process, to 1e-4. If an answer of this project's server is missing
or wrong, the benchmark ends; if one of another system is, that system is left out.

- no exchange: the same server, whose exchange does nothing;
- multiplexed: Ray Serve's `@serve.multiplexed` behind the same proxy, loading whole models from disk, with room for as
  many as fit into the memory that this project's server took for all its tasks;
- process a task: uvicorn and transformers, one process and one thread for each task;
- LitServe, infinity: all models in memory. Both run in environments of their own, which are made on first use under the
  data directory (`peers/`); `--quick` takes them only if these exist.

For this project's server the table also says how many inputs a forward pass had, and how many switches there were for
each forward pass. Memory is that of the whole process tree, shared pages counted once (PSS). Systems that are compared
closely are measured in turns, A B A B; figures are medians. A run takes about 20 minutes, 24 GiB of memory and 25 GB of
disk. `--quick`: 16 tasks instead of 64, none with 512, shorter runs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from rich.table import Table

from benchmarks.fine_tunes import tasks as fine_tuned_tasks
from benchmarks.fine_tunes import with_fine_tune_options
from benchmarks.in_process import InProcess, in_process
from benchmarks.many_tasks import Published, derive, publish
from benchmarks.peers import systems
from benchmarks.peers.load import Draw, median
from benchmarks.peers.process import PeerError
from benchmarks.peers.systems import System, Whole
from benchmarks.peers.trial import Cell, Measured, Trial, WrongAnswerError
from benchmarks.report import Row, report, with_shared_options
from ken_core import Checkpoint, apply, open_base, open_tuned
from serving.config import default_data_dir
from serving.cores import usable_cores
from serving.demo.prepare import demo_base
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.store.urls import connect
from serving.terminal import say

_MIB = 1 << 20
_SPARE_BYTES = 8 << 30
"""Memory that must stay free for the deltas of all tasks to count as fitting. The files that the replica maps and this
process's own replica need some too, and when memory runs out Ray ends the replica."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        few: how many tasks are served by a process each.
        many: how many tasks the design's bar is set for.
        most: so many tasks that not all of them stay attached with the default budgets.
        clients: numbers of clients; one of them is `usual`, for which the bar is set.
        first: how many tasks' first answers are timed one by one.
        lead: seconds at the start of a run that are not counted.
        seconds: how long a run is counted.
    """

    few: int
    many: int
    most: int | None
    clients: tuple[int, ...]
    usual: int
    first: int
    texts: int
    repeats: int
    lead: float
    seconds: float

    @property
    def published(self) -> int:
        return max(self.most or 0, 2 * self.many + self.first)


_FULL = Sizes(8, 64, 512, (8, 64, 256), usual=64, first=32, texts=200, repeats=3, lead=1.0, seconds=6.0)
_QUICK = Sizes(4, 16, None, (8, 64), usual=64, first=4, texts=50, repeats=2, lead=0.3, seconds=1.2)


@dataclass
class Findings:
    """The findings of a run so far."""

    measured: list[Measured] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    bars: dict[str, str] = field(default_factory=dict)
    """A row's name -> the bar for its value."""
    notes: list[str] = field(default_factory=list)
    """Versions of the packages in the peers' own environments, and the peers that are missing."""

    def rate(self, system: str, cell: Cell) -> float:
        return next(m.figures.rate for m in self.measured if (m.system, m.cell) == (system, cell))

    def add(self, name: str, value: float, unit: str, against: str | None = None, bar: str | None = None) -> None:
        self.rows.append(Row(name, value, unit, against))
        if bar:
            self.bars[name] = bar

    def all_rows(self) -> list[Row]:
        found = []
        for m in self.measured:
            found.append(Row(f"{m.name}: requests/s", m.figures.rate, "1/s"))
            found.append(Row(f"{m.name}: p50", m.figures.p50 * 1000, "ms"))
            found.append(Row(f"{m.name}: p99", m.figures.p99 * 1000, "ms"))
            found.append(Row(f"{m.name}: clients' share of a core", m.figures.clients_share, "ratio", "one core"))
            if m.batches:
                found.append(Row(f"{m.name}: inputs a forward pass", m.batches.rows / m.batches.count, "1"))
                found.append(Row(f"{m.name}: switches a forward pass", m.batches.switches / m.batches.count, "1"))
        return [*found, *self.rows]


@dataclass(frozen=True)
class Place:
    """Everything that a run works with: sizes, folder, servers' settings, published tasks, right answers, findings."""

    sizes: Sizes
    folder: Path
    settings: dict[str, str]
    published: Sequence[Published]
    whole: Whole
    truth: InProcess
    trial: Trial
    found: Findings


def main() -> None:
    data_dir = Path(os.environ.get("KEN_DATA_DIR") or default_data_dir()).expanduser()
    parser = with_shared_options(argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None))
    options = with_fine_tune_options(parser).parse_args()
    os.environ.setdefault("NUMBA_CACHE_DIR", str(data_dir / "numba"))
    with _prepared(_QUICK if options.quick else _FULL, data_dir, options.texts, options.models) as place:
        try:
            held = _compare_with_itself(place)
        except WrongAnswerError as error:
            raise SystemExit(f"no figures: {error}") from None
        _compare_with_peers(place, held, install=not options.quick)
        found = place.found
        title = "; ".join([f"MiniLM-L6, one question a request, {place.whole.threads} threads", *found.notes])
        report(title, found.all_rows(), options.json, [_measured_table(title, found), _rows_table(found)])


@contextmanager
def _prepared(sizes: Sizes, data_dir: Path, texts: Path, models: Path) -> Iterator[Place]:
    """Fine-tune, derive and publish the tasks, and write the whole models of the first tasks."""
    data_dir.mkdir(parents=True, exist_ok=True)
    task = fine_tuned_tasks(texts)[0]
    questions = [example.text for example in task.test[: sizes.texts]]
    say(f"texts: {len(questions)} of {task.name}'s test part")
    base, tuned = open_base(demo_base()), open_tuned(str(task.fine_tune(0, models)))
    threads = usable_cores()
    found = Findings()
    with tempfile.TemporaryDirectory(dir=data_dir) as name, ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(embedded_store(folder))
        names = [f"t{i:03d}" for i in range(sizes.published)]
        whole = Whole(folder / "whole", names[: sizes.many], data_dir / "peers", folder / "peers.log", threads)
        published = list(_publish(sizes, base, tuned, names, url, whole.folder))
        _describe_published(published, found)
        settings = {"base": demo_base(), "redis_url": url, "threads": str(threads)}
        own = settings | {"data_dir": str(folder / "in-process"), "packed_bytes": str(1 << 30)}
        truth = stack.enter_context(in_process(own, url, [p.digest for p in published], questions))
        trial = Trial(names, questions, truth, sizes.lead, sizes.seconds)
        yield Place(sizes, folder, settings, published, whole, truth, trial, found)


def _publish(
    sizes: Sizes, base: Checkpoint, tuned: Checkpoint, names: Sequence[str], url: str, folder: Path
) -> Iterator[Published]:
    # if the store rewrote gigabytes of its log in the background, some system's latency would include that
    connect(url).config_set("auto-aof-rewrite-percentage", 0)
    store = Store(url)
    folder.mkdir()
    for i, (name, delta) in enumerate(zip(names, derive(base, tuned, len(names)), strict=True)):
        if i % 64 == 0:
            say(f"publishing tasks {i} to {min(i + 64, len(names)) - 1}")
        yield publish(delta, name, base, store, folder)
        if i < sizes.many:
            apply(base, delta, folder / name)
    store.connection.close()


def _describe_published(published: Sequence[Published], found: Findings) -> None:
    found.add("published tasks", len(published), "1")
    found.add("a delta file's bytes, codec raw", statistics.median(p.size for p in published), "B")
    found.add("publishing one: median", statistics.median(p.seconds for p in published) * 1000, "ms")


def _compare_with_itself(place: Place) -> int:
    """Measure this project's server: the bars, warm and cold. Returns how many whole models its memory would hold."""
    sizes, trial, found = place.sizes, place.trial, place.found
    with _ken(place) as ken:
        empty = ken.memory()
        trial.once_each(ken, 0, sizes.many, sizes.usual, "first answers")
        with systems.without_exchange(_own(place, "no-exchange"), place.folder / "log") as noop:
            trial.once_each(noop, 0, sizes.many, sizes.usual, "first answers", checked=False)
            _bars(place, ken, noop)
        loaded = ken.memory()
        _over_the_engine(place, ken)
        _warm(place, ken)
        _cold(place, ken)
        if sizes.most:
            say(f"{sizes.most} tasks, budgets as by default")
            trial.once_each(ken, 0, sizes.most, sizes.usual, "first answers")
            _all(place, ken, "")
            found.add(f"memory: ken, {sizes.most} tasks, default budgets", ken.memory(), "B")
    growth = loaded - empty
    resident = sum(t.nbytes for t in open_base(demo_base()).backbone_tensors.values())
    found.add("memory: ken, no task", empty, "B")
    found.add(f"memory: ken, {sizes.many} tasks", loaded, "B")
    found.add("memory: ken, a task more", growth / sizes.many, "B")
    found.add("memory: the store", connect(place.settings["redis_url"]).info("memory")["used_memory_rss"], "B")
    if sizes.most:
        _with_room_for_all(place, growth / sizes.many * sizes.most)
    return max(1, round((resident + growth) / resident))


def _bars(place: Place, ken: System, noop: System) -> None:
    """Measure in turns: many tasks, many tasks without the exchange, and one task."""
    sizes, found = place.sizes, place.found
    for clients in sizes.clients:
        say(f"{sizes.many} tasks, without exchange, one task: {clients} clients")
        many, one = Cell(sizes.many, "Zipf", clients), Cell(1, "Zipf", clients)
        ours, without, alone = _in_turns(place, [(ken, many), (noop, many), (ken, one)])
        for other, what in ((without, "no exchange"), (alone, "one task")):
            barred = clients == sizes.usual and what == "no exchange"
            rate, p99 = ours.figures.rate / other.figures.rate, ours.figures.p99 / other.figures.p99
            found.add(f"{ours.name}: rate over {what}", rate, "ratio", other.name, ">= 0.9" if barred else None)
            found.add(f"{ours.name}: p99 over {what}", p99, "ratio", other.name, "<= 1.1" if barred else None)


def _in_turns(place: Place, arms: Sequence[tuple[System, Cell]]) -> list[Measured]:
    """Measure every arm once, then every arm again, and so on; medians over the repetitions."""
    runs = [[_measure(place, *arm) for arm in arms] for _ in range(place.sizes.repeats)]
    medians = [replace(c[-1], figures=median([m.figures for m in c])) for c in zip(*runs, strict=True)]
    place.found.measured += medians
    return medians


def _measure(place: Place, system: System, cell: Cell) -> Measured:
    return place.trial.measure(system, cell, checked=system.name != "no exchange")


def _over_the_engine(place: Place, ken: System) -> None:
    """Measure in turns: one client over HTTP, and the same texts in process."""
    say("one client, over HTTP and in process")
    cell = Cell(1, "Zipf", 1)
    texts = range(place.sizes.texts)
    place.truth.seconds(0, texts, place.sizes.lead)
    over_http, inside = [], []
    for _ in range(place.sizes.repeats):
        over_http.append(place.trial.measure(ken, cell))
        inside.append(statistics.median(place.truth.seconds(0, texts, place.sizes.seconds)))
    measured = Measured(ken.name, cell, median([m.figures for m in over_http]))
    place.found.measured.append(measured)
    http, engine = measured.figures.p50 * 1000, statistics.median(inside) * 1000
    place.found.add("in process: 1 task, 1 client: p50", engine, "ms")
    place.found.add("HTTP on top of the engine, one client: median", http - engine, "ms", bar="< 2 ms")


def _warm(place: Place, ken: System) -> None:
    for tasks, how in itertools.product((place.sizes.few, place.sizes.many), ("uniform", "Zipf")):
        cell = Cell(tasks, how, place.sizes.usual)  # type: ignore[arg-type]
        if all(m.cell != cell for m in place.found.measured):
            say(str(cell))
            place.found.measured.append(place.trial.measure(ken, cell))


def _cold(place: Place, ken: System) -> None:
    """Measure tasks that this replica never saw: first answers one after another, then with many clients at once."""
    sizes = place.sizes
    say("cold tasks")
    place.found.measured.append(place.trial.once_each(ken, sizes.many, sizes.first, 1, "first answers"))
    for how in ("uniform", "Zipf") if sizes.most else ("Zipf",):
        first = sizes.many + sizes.first + (sizes.many if how == "uniform" else 0)
        cell = Cell(sizes.many, how, sizes.usual, first, "cold")  # type: ignore[arg-type]
        place.found.measured.append(place.trial.measure(ken, cell))


def _all(place: Place, ken: System, room: str) -> None:
    assert place.sizes.most
    draws: tuple[Draw, ...] = ("uniform", "Zipf")
    for how in draws:
        measured = place.trial.measure(ken, Cell(place.sizes.most, how, place.sizes.usual))
        place.found.measured.append(replace(measured, system=measured.system + room))


def _with_room_for_all(place: Place, needed: float) -> None:
    """Measure `most` tasks with a budget that keeps every delta attached, if the machine has the memory."""
    free = psutil.virtual_memory().available - _SPARE_BYTES
    if needed > free:
        say(f"all {place.sizes.most} deltas attached would take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
        return
    say(f"{place.sizes.most} tasks, all attached")
    assert place.sizes.most
    with _ken(place, packed_bytes=str(1 << 40), host_bytes="0", data_dir=str(place.folder / "ken")) as ken:
        place.trial.once_each(ken, 0, place.sizes.most, place.sizes.usual, "first answers")
        _all(place, ken, ", all attached")
        place.found.add(f"memory: ken, {place.sizes.most} tasks, all attached", ken.memory(), "B")


def _compare_with_peers(place: Place, held: int, *, install: bool) -> None:
    """Measure systems that serve whole models, with as many models as each can hold.

    A peer that cannot be installed or started, or that answers wrongly, is left out, and a printed line says so.
    """
    few = place.whole.only(place.sizes.few)
    place.found.add("multiplexed: models held", held, "1")
    peers: list[tuple[str, Callable[[], AbstractContextManager[System]], int]] = [
        ("process a task", lambda: systems.dedicated(few), place.sizes.few),
        (
            "multiplexed",
            lambda: systems.multiplexed(place.whole, held, _own(place, "multiplexed")),
            place.sizes.many,
        ),
        ("LitServe", lambda: systems.litserve(place.whole, install=install), place.sizes.many),
        ("infinity", lambda: systems.infinity(place.whole, install=install), place.sizes.many),
    ]
    for name, start, models in peers:
        try:
            say(f"{name}, {models} models")
            with start() as peer:
                _compare_with(place, peer, models)
        except (PeerError, WrongAnswerError) as error:
            place.found.notes.append(f"without {name}")
            say(f"{name} is left out: {error}")


def _compare_with(place: Place, peer: System, models: int) -> None:
    sizes, found = place.sizes, place.found
    place.trial.once_each(peer, 0, models, sizes.usual, "first answers")
    for tasks in (sizes.few, sizes.many):
        if tasks > models:
            continue
        cell = Cell(tasks, "Zipf", sizes.usual)
        theirs = place.trial.measure(peer, cell)
        found.measured.append(theirs)
        found.add(
            f"ken: {cell}: rate over {peer.name}", found.rate("ken", cell) / theirs.figures.rate, "ratio", theirs.name
        )
    memory = peer.memory()
    found.add(f"memory: {peer.name}, {models} models", memory, "B")
    if peer.versions:
        found.notes.append(peer.versions)
    if len(peer.servers) > 1:
        another = peer.unshared() / models
        fit = models + (psutil.virtual_memory().total - memory) / another
        found.add(f"memory: {peer.name}, one more", another, "B")
        found.add(f"{peer.name}: how many this machine's memory holds", int(fit), "1")


@contextmanager
def _ken(place: Place, **settings: str) -> Iterator[System]:
    with systems.ken(_own(place, "ken") | settings, place.folder / "log") as system:
        yield system


def _own(place: Place, name: str) -> dict[str, str]:
    """Settings of a server that shares the store with the other servers, and nothing else."""
    return place.settings | {"data_dir": str(place.folder / name)}


def _measured_table(title: str, found: Findings) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("asked")
    table.add_column("system")
    for column in ("requests/s", "p50 ms", "p99 ms", "inputs", "switches", "clients' core"):
        table.add_column(column, justify="right")
    by_cell = sorted(found.measured, key=lambda m: (m.cell.state, m.cell.tasks, m.cell.draw, m.cell.clients))
    for cell, group in itertools.groupby(by_cell, key=lambda m: m.cell):
        for i, m in enumerate(group):
            f = m.figures
            ran = m.batches
            inside = (f"{ran.rows / ran.count:.1f}", f"{ran.switches / ran.count:.2f}") if ran else ("", "")
            numbers = (f"{f.rate:,.0f}", f"{f.p50 * 1000:,.1f}", f"{f.p99 * 1000:,.0f}", *inside)
            table.add_row("" if i else str(cell), m.system, *numbers, f"{f.clients_share:.0%}")
        table.add_section()
    return table


def _rows_table(found: Findings) -> Table:
    table = Table(title="compared", title_justify="left")
    for column, justify in (("what", "left"), ("value", "right"), ("bar", "left"), ("against", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in found.rows:
        table.add_row(row.name, _shown(row), found.bars.get(row.name, ""), row.against or "")
    return table


def _shown(row: Row) -> str:
    if row.unit == "B":
        return f"{row.value / _MIB:,.0f} MiB"
    unit = {"ratio": "", "1": ""}.get(row.unit, f" {row.unit}")
    return f"{row.value:,.2f}{unit}" if row.unit != "1" else f"{row.value:,.0f}"


if __name__ == "__main__":
    main()
