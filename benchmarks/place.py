"""What `benchmarks.serving` works with: how much is measured, published tasks, their right answers, the findings."""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.findings import Findings
from benchmarks.fine_tunes import tasks as fine_tuned_tasks
from benchmarks.in_process import InProcess, in_process
from benchmarks.many_tasks import Published, derive, derive_low_rank, derive_svd, publish
from benchmarks.peers.systems import Whole
from benchmarks.peers.trial import Trial
from ken_core import Checkpoint, Delta, apply, open_base, open_tuned
from serving.demo.prepare import demo_base
from serving.engine.cores import usable_cores
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.store.urls import connect
from serving.terminal import say

_LONG = (64, 128)
"""Tokens of a long text: at least so many, and hardly more than so many."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        few: how many tasks are served by a process each.
        many: how many tasks most bars are set for; as many tasks are low-rank, and as many are stored by svd.
        most: so many tasks that not all of them stay attached with the default budgets.
        clients: numbers of clients; `usual` and `little` are those that bars are set for.
        first: how many tasks' first answers are timed one by one.
        asked: how many tasks one text is put to.
        texts, long: how many short and long texts there are.
        lead: seconds at the start of a run that are not counted.
        seconds: how long a run is counted.
    """

    few: int
    many: int
    most: int | None
    little: int
    usual: int
    clients: tuple[int, ...]
    first: int
    asked: int
    texts: int
    long: int
    repeats: int
    lead: float
    seconds: float

    @property
    def published(self) -> int:
        """Tasks that keep elements; the low-rank ones come after them, and then those stored by svd."""
        return max(self.most or 0, 2 * self.many + self.first)


FULL = Sizes(
    few=8,
    many=64,
    most=512,
    little=8,
    usual=64,
    clients=(8, 64, 256),
    first=32,
    asked=16,
    texts=200,
    long=100,
    repeats=3,
    lead=1.0,
    seconds=6.0,
)
QUICK = Sizes(
    few=4,
    many=16,
    most=None,
    little=8,
    usual=64,
    clients=(8, 64),
    first=4,
    asked=16,
    texts=50,
    long=20,
    repeats=2,
    lead=0.3,
    seconds=1.2,
)


@dataclass(frozen=True)
class Place:
    """Everything that a run works with. `truth` gives the right answers, by a replica that never mixes tasks."""

    sizes: Sizes
    folder: Path
    settings: dict[str, str]
    published: Sequence[Published]
    questions: Sequence[str]
    whole: Whole
    truth: InProcess
    trial: Trial
    found: Findings

    def own(self, name: str, **settings: str) -> dict[str, str]:
        """Settings of a server that shares the store with the other servers, and nothing else."""
        return self.settings | {"data_dir": str(self.folder / name)} | settings

    def inside(self, name: str, **settings: str) -> AbstractContextManager[InProcess]:
        """Another replica in this process."""
        digests = [p.digest for p in self.published]
        return in_process(self.own(name, **settings), self.settings["redis_url"], digests, self.questions)


@contextmanager
def prepared(sizes: Sizes, data_dir: Path, texts: Path, models: Path) -> Iterator[Place]:
    """Fine-tune, derive and publish the tasks, and write the whole models of the first tasks."""
    data_dir.mkdir(parents=True, exist_ok=True)
    task = fine_tuned_tasks(texts)[0]
    questions = [example.text for example in task.test[: sizes.texts]]
    say(f"texts: {len(questions)} of {task.name}'s test part")
    long = list(_long_texts([example.text for example in task.test], sizes.long))
    base, tuned = open_base(demo_base()), open_tuned(str(task.fine_tune(0, models)))
    threads = usable_cores()
    with tempfile.TemporaryDirectory(dir=data_dir) as name, ExitStack() as stack:
        folder = Path(name)
        url = stack.enter_context(embedded_store(folder))
        names = [f"t{i:03d}" for i in range(sizes.published)] + [f"low-rank-{i:02d}" for i in range(sizes.many)]
        names += [f"svd-{i:02d}" for i in range(sizes.many)]
        whole = Whole(folder / "whole", names[: sizes.many], data_dir / "peers", folder / "peers.log", threads)
        deltas = chain(
            derive(base, tuned, sizes.published),
            derive_low_rank(base, tuned, sizes.many),
            derive_svd(base, tuned, sizes.many),
        )
        published = list(_publish(zip(names, deltas, strict=True), base, url, whole))
        settings = {"base": demo_base(), "redis_url": url, "threads": str(threads)}
        own = settings | {"data_dir": str(folder / "truth"), "packed_bytes": str(1 << 30), "mixed": "off"}
        truth = stack.enter_context(in_process(own, url, [p.digest for p in published], [*questions, *long]))
        trial = Trial(names, questions, long, truth, sizes.lead, sizes.seconds)
        found = Findings()
        _describe_published(published, sizes, found)
        yield Place(sizes, folder, settings, published, questions, whole, truth, trial, found)


def _long_texts(questions: Sequence[str], count: int) -> Iterator[str]:
    """Texts of questions one after the other, of different lengths."""
    tokens = AutoTokenizer.from_pretrained(demo_base())
    dice = random.Random(0)
    for _ in range(count):
        text, wanted = dice.choice(questions), dice.randint(*_LONG)
        while len(tokens(text)["input_ids"]) < wanted:
            text = f"{text} {dice.choice(questions)}"
        yield text


def _publish(deltas: Iterable[tuple[str, Delta]], base: Checkpoint, url: str, whole: Whole) -> Iterator[Published]:
    # if the store rewrote gigabytes of its log in the background, some system's latency would include that
    connect(url).config_set("auto-aof-rewrite-percentage", 0)
    store = Store(url)
    whole.folder.mkdir()
    for i, (name, delta) in enumerate(deltas):
        if i % 64 == 0:
            say(f"publishing tasks from {name} on")
        yield publish(delta, name, base, store, whole.folder)
        if name in whole.tasks:
            apply(base, delta, whole.folder / name)
    store.connection.close()


def _describe_published(published: Sequence[Published], sizes: Sizes, found: Findings) -> None:
    sparse, others = published[: sizes.published], published[sizes.published :]
    low_rank, truncated = others[: sizes.many], others[sizes.many :]
    found.add("published tasks", len(published), "1")
    found.add("a delta file's bytes, codec raw", statistics.median(p.size for p in sparse), "B")
    found.add("a low-rank delta file's bytes, codec raw", statistics.median(p.size for p in low_rank), "B")
    found.add("an svd delta file's bytes, codec int4", statistics.median(p.size for p in truncated), "B")
    found.add("publishing one: median", statistics.median(p.seconds for p in published) * 1000, "ms")
