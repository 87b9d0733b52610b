"""Serving many tasks over HTTP: this project's server, and other ways to serve the same fine-tunes.

    python -m benchmarks.serving [--quick] [--json FILE] [--texts FOLDER] [--models FOLDER]

Closed-loop clients in a process of their own (`benchmarks.peers.clients`) send one question in each request: TREC's
test questions if `--texts` holds them, else the demonstration's news. Long texts are several questions one behind the
other. All tasks come from one fine-tune of MiniLM-L6 (trained on first use, kept in `--models`). Every task has its own
delta (`benchmarks.many_tasks`), which keeps 10 % or, where the tasks are called low-rank, holds factors of rank 16 for
every Linear, or is what `ken extract --method svd` writes. Deltas are stored with the codec `raw`, those of svd with
`int4`. Every system computes with the same number of threads, in batches
of at most 32. Its answers must be those of a replica in this process that runs batches of one task only, to 1e-4. If an
answer of this project's server is missing or wrong, the benchmark ends; if one of another system is, that system is
left out.

- ken: this project's server, which mixes tasks in a batch where that is faster (`KEN_MIXED=auto`);
- exchange only: the same server with `KEN_MIXED=off`, so that a batch has one task;
- no exchange: the same, with an exchange that does nothing. Its answers are wrong. It shows how much of the time of
  *exchange only* exchanges take; a server that mixes tasks hardly exchanges;
- process a task: uvicorn and transformers, one process and one thread for each task;
- LitServe, infinity: all models in memory. Both run in environments of their own, which are made on first use under the
  data directory (`peers/`); `--quick` takes them only if these exist;
- multiplexed: Ray Serve's `@serve.multiplexed` behind the same proxy, loading whole models from disk, with room for as
  many as fit into the memory that this project's server took for all its tasks.

Every bar of `benchmarks.bars` compares systems or cells that are measured in turns, A B A B; figures are medians, and
rates in requests per second. The last table says which bars were met. Other cells are measured once. For this project's
server the first table also says how many inputs a forward pass had, how many tasks a mixed one, the share of mixed
passes, and how many switches there were for each pass.

Memory is that of the whole process tree, shared pages counted once (PSS). This project's is read after load and before
a peer starts, the peer's while both run: what they share then counts for the peer only in part.

A full run takes about 25 minutes on 2 cores, 24 GiB of memory and 25 GB of disk, once the fine-tune and the peers'
environments exist. `--quick`: 16 tasks instead of 64, 4 instead of 8, none with 512, shorter runs; 5 minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.bars import bars_table
from benchmarks.findings import measured_table, rows_table
from benchmarks.fine_tunes import with_fine_tune_options
from benchmarks.peers import systems
from benchmarks.peers.load import median
from benchmarks.peers.process import PeerError
from benchmarks.peers.systems import System
from benchmarks.peers.trial import Cell, Measured, WrongAnswerError
from benchmarks.place import FULL, QUICK, Place, Sizes, prepared
from benchmarks.report import report, with_shared_options
from ken_core import open_base
from serving.data_dir import default_data_dir
from serving.demo.prepare import demo_base
from serving.store.urls import connect
from serving.terminal import say

_SPARE_BYTES = 8 << 30
"""Memory that must stay free for the deltas of all tasks to count as fitting. The files that the replica maps and this
process's own replica need some too, and when memory runs out Ray ends the replica."""
_EXCHANGE_ONLY, _NO_EXCHANGE = "exchange only", "no exchange"


@dataclass(frozen=True)
class Memory:
    """What the tasks of this project's server take.

    Attributes:
        a_task: bytes.
        held: how many whole models fit into the bytes of all `many` tasks and the base.
    """

    a_task: float
    held: int


def main() -> None:
    data_dir = Path(os.environ.get("KEN_DATA_DIR") or default_data_dir()).expanduser()
    parser = with_shared_options(argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None))
    options = with_fine_tune_options(parser).parse_args()
    os.environ.setdefault("NUMBA_CACHE_DIR", str(data_dir / "numba"))
    with prepared(QUICK if options.quick else FULL, data_dir, options.texts, options.models) as place:
        try:
            _measure_all(place, install=not options.quick)
        except WrongAnswerError as error:
            raise SystemExit(f"no figures: {error}") from None
        found = place.found
        title = "; ".join([f"MiniLM-L6, one question a request, {place.whole.threads} threads", *found.notes])
        tables = [measured_table(title, found), rows_table(found), bars_table(found.rows, _note(place.sizes))]
        report(title, found.all_rows(), options.json, tables)


def _note(sizes: Sizes) -> str:
    if (sizes.few, sizes.many) == (FULL.few, FULL.many):
        return ""
    return f", with {sizes.many} tasks for {FULL.many} and {sizes.few} for {FULL.few}"


def _measure_all(place: Place, *, install: bool) -> None:
    with _ken(place, _EXCHANGE_ONLY, mixed="off") as exchanging:
        place.trial.once_each(exchanging, 0, place.sizes.many, place.sizes.usual, "first answers")
        with _ken(place) as ken:
            _warm_up(place, ken)
            _many_tasks(place, ken, exchanging)
            _long_texts(place, ken, exchanging)
            _fan_out(place, ken)
            _over_the_engine(place, ken)
            _once(place, ken)
            _cold(place, ken)
        _without_exchange(place, exchanging)
    memory = _beside_peers(place, install)
    _other_peers(place, memory.held, install)
    if place.sizes.most:
        _most_tasks(place, memory.a_task)


# This project's server


def _warm_up(place: Place, ken: System) -> None:
    sizes = place.sizes
    place.trial.once_each(ken, 0, sizes.many, sizes.usual, "first answers")
    place.trial.once_each(ken, sizes.published, sizes.many, sizes.usual, "first answers")
    place.trial.once_each(ken, sizes.published + sizes.many, sizes.many, sizes.usual, "first answers")


def _many_tasks(place: Place, ken: System, exchanging: System) -> None:
    """Measure in turns: many tasks, low-rank ones and one task; mixed, and by exchange."""
    sizes, found = place.sizes, place.found
    many, one = Cell(sizes.many, "Zipf", sizes.usual), Cell(1, "Zipf", sizes.usual)
    low_rank = replace(many, first=sizes.published, kind="low-rank")
    svd = replace(many, first=sizes.published + sizes.many, kind="svd")
    say(f"many tasks and one task, {sizes.usual} clients")
    arms = [(ken, many), (ken, low_rank), (ken, svd), (ken, one), (exchanging, many), (exchanging, one)]
    mixed, factors, truncated, alone, exchanged, exchanged_alone = _in_turns(place, arms)
    found.bar("64-tasks", _rate(mixed, alone), alone.name)
    found.bar("p99", mixed.figures.p99 / alone.figures.p99, alone.name)
    found.bar("64-low-rank", _rate(factors, alone), alone.name)
    found.bar("64-svd", _rate(truncated, alone), alone.name)
    found.bar("one-task", _rate(alone, exchanged_alone), exchanged_alone.name)
    found.add(f"{mixed.name}: rate over {exchanging.name}", _rate(mixed, exchanged), "ratio", exchanged.name)
    say(f"many tasks and one task, {sizes.little} clients")
    cells = replace(many, clients=sizes.little), replace(one, clients=sizes.little)
    mixed, alone = _in_turns(place, [(ken, cell) for cell in cells])
    found.bar("8-clients", _rate(mixed, alone), alone.name)


def _long_texts(place: Place, ken: System, exchanging: System) -> None:
    say("long texts")
    cell = Cell(place.sizes.many, "Zipf", place.sizes.usual, long=True)
    mixed, exchanged = _in_turns(place, [(ken, cell), (exchanging, cell)])
    place.found.bar("long-texts", _rate(mixed, exchanged), exchanged.name)


def _fan_out(place: Place, ken: System) -> None:
    """Measure in turns: a text to many tasks in one request, and in as many requests at once."""
    trial, found, tasks = place.trial, place.found, range(place.sizes.asked)
    say(f"one text to {len(tasks)} tasks")
    together, apart = [], []
    for _ in range(place.sizes.repeats):
        together.append(trial.fan_out(ken, tasks, in_one_request=True))
        apart.append(trial.fan_out(ken, tasks, in_one_request=False))
    one, many = statistics.median(together), statistics.median(apart)
    name = f"a text to {len(tasks)} tasks"
    found.add(f"{name}, one request: median", one * 1000, "ms")
    found.add(f"{name}, {len(tasks)} requests at once: median", many * 1000, "ms")
    found.bar("fan-out", one / many, f"{name}, {len(tasks)} requests at once: median")


def _over_the_engine(place: Place, ken: System) -> None:
    """Measure in turns: one client over HTTP, and the same texts in process, with the same settings."""
    say("one client, over HTTP and in process")
    sizes, found, cell = place.sizes, place.found, Cell(1, "Zipf", 1)
    over_http, in_process = [], []
    with place.inside("inside", mixed="auto") as engine:
        engine.seconds(0, range(sizes.texts), sizes.lead)
        for _ in range(sizes.repeats):
            over_http.append(place.trial.measure(ken, cell))
            in_process.append(statistics.median(engine.seconds(0, range(sizes.texts), sizes.seconds)))
    found.measured.append(replace(over_http[-1], figures=median([m.figures for m in over_http])))
    found.add("in process: 1 task, 1 client: p50", statistics.median(in_process) * 1000, "ms")
    # of the turns, not of the medians: what else the machine does then hits both sides of a difference alike
    added = [m.figures.p50 - inside for m, inside in zip(over_http, in_process, strict=True)]
    found.bar("http", statistics.median(added) * 1000)


def _once(place: Place, ken: System) -> None:
    """Measure the cells that no bar is set for."""
    sizes = place.sizes
    cells = [Cell(tasks, "uniform", sizes.usual) for tasks in (sizes.few, sizes.many)]
    cells += [Cell(sizes.few, "Zipf", sizes.usual)]
    cells += [Cell(sizes.many, "Zipf", clients) for clients in sizes.clients]
    for cell in cells:
        if all(m.cell != cell for m in place.found.measured):
            say(str(cell))
            place.found.measured.append(place.trial.measure(ken, cell))


def _cold(place: Place, ken: System) -> None:
    """Measure tasks that this replica never saw: first answers one after another, then with many clients at once."""
    sizes = place.sizes
    say("cold tasks")
    place.found.measured.append(place.trial.once_each(ken, sizes.many, sizes.first, 1, "first answers"))
    cell = Cell(sizes.many, "Zipf", sizes.usual, sizes.many + sizes.first, "cold")
    place.found.measured.append(place.trial.measure(ken, cell))


def _without_exchange(place: Place, exchanging: System) -> None:
    """Measure in turns: the server that only exchanges, and the same one without exchanging."""
    sizes = place.sizes
    say("exchange only, and without the exchange")
    cell = Cell(sizes.many, "Zipf", sizes.usual)
    with systems.without_exchange(place.own("no-exchange", mixed="off"), place.folder / "log") as noop:
        place.trial.once_each(noop, 0, sizes.many, sizes.usual, "first answers", checked=False)
        ours, without = _in_turns(place, [(exchanging, cell), (noop, cell)], f"beside {_NO_EXCHANGE}")
    place.found.add(f"{ours.name}: rate over {_NO_EXCHANGE}", _rate(ours, without), "ratio", without.name)


def _most_tasks(place: Place, a_task: float) -> None:
    """Measure so many tasks that not all stay attached; and in turns with one task, where all do."""
    sizes, found = place.sizes, place.found
    assert sizes.most
    most, one = Cell(sizes.most, "Zipf", sizes.usual), Cell(1, "Zipf", sizes.usual)
    say(f"{sizes.most} tasks, budgets as by default")
    with _ken(place) as ken:
        place.trial.once_each(ken, 0, sizes.most, sizes.usual, "first answers")
        found.measured.append(place.trial.measure(ken, most))
        found.add(f"memory: ken, {sizes.most} tasks, default budgets", ken.memory(), "B")
    needed, free = a_task * sizes.most, psutil.virtual_memory().available - _SPARE_BYTES
    if needed > free:
        say(f"all {sizes.most} deltas attached would take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
        return
    say(f"{sizes.most} tasks, all attached")
    with _ken(place, packed_bytes=str(1 << 40), host_bytes="0") as ken:
        place.trial.once_each(ken, 0, sizes.most, sizes.usual, "first answers")
        all_attached, alone = _in_turns(place, [(ken, most), (ken, one)], "with all attached")
        found.bar("512-tasks", _rate(all_attached, alone), alone.name)
        found.add(f"memory: ken, {sizes.most} tasks, all attached", ken.memory(), "B")


# Peers


def _beside_peers(place: Place, install: bool) -> Memory:
    """Measure a fresh server in turns with the peers that bars are set against; returns the memory that its tasks take.

    A peer that cannot be installed or started, or that answers wrongly, is left out, and a printed line says so.
    """
    sizes, found = place.sizes, place.found
    few = place.whole.only(sizes.few)
    with _ken(place) as ken:
        empty = ken.memory()
        with_few = _loaded(place, ken, sizes.few)
        with _left_out_if_it_fails(place, "process a task"), systems.dedicated(few) as peer:
            _beside(place, ken, peer, sizes.few, with_few, "process-a-task", "process-a-task-memory")
        with_many = _loaded(place, ken, sizes.many)
        with _left_out_if_it_fails(place, "LitServe"), systems.litserve(place.whole, install=install) as peer:
            _beside(place, ken, peer, sizes.many, with_many, "litserve-rate", "litserve-memory")
    found.add("memory: ken, no task", empty, "B")
    found.add("memory: ken, a task more", (with_many - empty) / sizes.many, "B")
    found.add("memory: the store", connect(place.settings["redis_url"]).info("memory")["used_memory_rss"], "B")
    base = sum(t.nbytes for t in open_base(demo_base()).backbone_tensors.values())
    return Memory((with_many - empty) / sizes.many, max(1, round((base + with_many - empty) / base)))


def _loaded(place: Place, ken: System, tasks: int) -> int:
    """Memory of this project's server once so many tasks have been asked under load."""
    say(f"{tasks} tasks, memory")
    place.trial.once_each(ken, 0, tasks, place.sizes.usual, "first answers")
    place.trial.measure(ken, Cell(tasks, "Zipf", place.sizes.usual))
    memory = ken.memory()
    place.found.add(f"memory: ken, {tasks} tasks", memory, "B")
    return memory


def _beside(place: Place, ken: System, peer: System, models: int, memory: int, rate_bar: str, memory_bar: str) -> None:
    """Measure in turns this project's server, which took so much memory alone, and a peer with as many models."""
    sizes = place.sizes
    say(f"{peer.name}, {models} models")
    place.trial.once_each(peer, 0, models, sizes.usual, "first answers")
    cell = Cell(models, "Zipf", sizes.usual)
    ours, theirs = _in_turns(place, [(ken, cell), (peer, cell)], f"beside {peer.name}")
    place.found.bar(rate_bar, _rate(ours, theirs), theirs.name)
    if models > sizes.few:
        place.found.measured.append(place.trial.measure(peer, Cell(sizes.few, "Zipf", sizes.usual)))
    name, their_memory = _describe_memory(place, peer, models)
    place.found.bar(memory_bar, memory / their_memory, name)


def _other_peers(place: Place, held: int, install: bool) -> None:
    """Measure peers that no bar is set against, each once and alone."""
    place.found.add("multiplexed: models held", held, "1")
    own = place.own("multiplexed")
    peers: list[tuple[str, Callable[[], AbstractContextManager[System]]]] = [
        ("multiplexed", lambda: systems.multiplexed(place.whole, held, own)),
        ("infinity", lambda: systems.infinity(place.whole, install=install)),
    ]
    for name, start in peers:
        say(f"{name}, {place.sizes.many} models")
        with _left_out_if_it_fails(place, name), start() as peer:
            place.trial.once_each(peer, 0, place.sizes.many, place.sizes.usual, "first answers")
            for tasks in (place.sizes.few, place.sizes.many):
                _compare(place, peer, Cell(tasks, "Zipf", place.sizes.usual))
            _describe_memory(place, peer, place.sizes.many)


def _compare(place: Place, peer: System, cell: Cell) -> None:
    found, theirs = place.found, place.trial.measure(peer, cell)
    found.measured.append(theirs)
    rate = found.rate("ken", cell) / theirs.figures.rate
    found.add(f"ken: {cell}: rate over {peer.name}", rate, "ratio", theirs.name)


def _describe_memory(place: Place, peer: System, models: int) -> tuple[str, int]:
    """Add the memory of a peer, and the versions of its packages; returns the memory's name and its bytes."""
    found, memory, name = place.found, peer.memory(), f"memory: {peer.name}, {models} models"
    found.add(name, memory, "B")
    if peer.versions:
        found.notes.append(peer.versions)
    if len(peer.servers) > 1:
        another = peer.unshared() / models
        fit = models + (psutil.virtual_memory().total - memory) / another
        found.add(f"memory: {peer.name}, one more", another, "B")
        found.add(f"{peer.name}: how many this machine's memory holds", int(fit), "1")
    return name, memory


@contextmanager
def _left_out_if_it_fails(place: Place, name: str) -> Iterator[None]:
    try:
        yield
    except (PeerError, WrongAnswerError) as error:
        if isinstance(error, WrongAnswerError) and error.system.is_ours:
            raise
        place.found.notes.append(f"without {name}")
        say(f"{name} is left out: {error}")


# Measuring


def _in_turns(place: Place, arms: Sequence[tuple[System, Cell]], how: str = "") -> list[Measured]:
    """Measure every arm once, then every arm again, and so on; medians over the repetitions.

    Args:
        how: added to the name of a system that was measured in the same cell before.
    """
    runs = [[_measure(place, *arm) for arm in arms] for _ in range(place.sizes.repeats)]
    medians, known = [], {(m.system, m.cell) for m in place.found.measured}
    for (system, cell), column in zip(arms, zip(*runs, strict=True), strict=True):
        name = f"{system.name}, {how}" if (system.name, cell) in known else system.name
        medians.append(replace(column[-1], system=name, figures=median([m.figures for m in column])))
    place.found.measured += medians
    return medians


def _measure(place: Place, system: System, cell: Cell) -> Measured:
    return place.trial.measure(system, cell, checked=system.name != _NO_EXCHANGE)


def _rate(one: Measured, other: Measured) -> float:
    return one.figures.rate / other.figures.rate


@contextmanager
def _ken(place: Place, name: str = "ken", mixed: str = "auto", **settings: str) -> Iterator[System]:
    own = place.own(name.replace(" ", "-"), mixed=mixed, **settings)
    with systems.ken(own, place.folder / "log", name) as system:
        yield system


if __name__ == "__main__":
    main()
