"""Three real fine-tunes of MiniLM on real text, their deltas in a store, and one server shared by the tests.

It ends with the last test of the folder, since the worker that ran them goes on to other tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.launch.server_process import ServerProcess
from tests.e2e.running import server_on


@dataclass(frozen=True)
class PublishedTask:
    """A task in the store: its delta file, the folder `ken apply` writes from it, held-out texts."""

    name: str
    file: Path
    digest: str
    folder: Path
    texts: list[str]


@pytest.fixture(scope="package")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="package")
def published(minilm: Path, work: Path) -> list[PublishedTask]:
    """Tasks with 5, 3 and 5 labels, trained briefly. Their scores are far from 0 and 1, so that errors are visible."""
    import torch

    from ken_core import apply, deltafile, extract, open_base, open_tuned
    from ken_core.finetune import Recipe, finetune
    from serving.demo.texts import TASKS

    torch.set_num_threads(2)
    base = open_base(str(minilm))
    made = []
    for task in TASKS:
        train, held_out = task.split()
        tuned = work / f"{task.name}-tuned"
        finetune(str(minilm), train[:64], tuned, Recipe(epochs=1, learning_rate=5e-4, max_length=32))
        extracted = extract(base, open_tuned(str(tuned)))
        file = deltafile.write(extracted, base, work / f"{task.name}.ken")
        folder = work / f"{task.name}-applied"
        apply(base, extracted, folder)
        made.append(PublishedTask(task.name, file.path, file.digest, folder, [e.text for e in held_out]))
    return made


@pytest.fixture(scope="package")
def later(minilm: Path, work: Path, published: list[PublishedTask]) -> PublishedTask:
    """A later version of the first task: the same fine-tune with another budget."""
    from ken_core import Budget, Selection, apply, deltafile, extract, open_base, open_tuned

    first = published[0]
    base, tuned = open_base(str(minilm)), open_tuned(str(work / f"{first.name}-tuned"))
    extracted = extract(base, tuned, Selection(budget=Budget(fraction=0.02)))
    file = deltafile.write(extracted, base, work / f"{first.name}-later.ken")
    folder = work / f"{first.name}-later-applied"
    apply(base, extracted, folder)
    return PublishedTask(first.name, file.path, file.digest, folder, first.texts)


@pytest.fixture(scope="package")
def store_url(work: Path) -> Iterator[str]:
    from serving.store.embedded import embedded_store

    with embedded_store(work / "store") as url:
        yield url


@pytest.fixture(scope="package")
def server(minilm: Path, work: Path, store_url: str, published: list[PublishedTask]) -> Iterator[ServerProcess]:
    """The server that all tests share. They must leave its tasks as they found them."""
    publish_all(store_url, published)
    with server_on(minilm, work / "server", store_url, work / "server.log") as running:
        yield running


def publish_all(url: str, published: list[PublishedTask]) -> None:
    from ken_core import deltafile
    from serving.store import Store

    store = Store(url)
    for task in published:
        store.tasks.publish(task.name, deltafile.open_file(task.file))
