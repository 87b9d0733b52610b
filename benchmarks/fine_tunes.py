"""The fine-tunes that accuracy is measured on: MiniLM-L6 on up to seven tasks, trained on first use and kept.

TREC and rotten tomatoes are read from a folder of JSON lines (`--texts`); the demonstration's texts come from PyPI, and
WordNet's definitions from Debian's package wordnet-base. Budgets are chosen on `dev`, which is cut from the training
text, and reported on `test`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.progress import Progress

from benchmarks import wordnet
from ken_core.examples import Example, read_examples
from ken_core.finetune import Recipe, Step, finetune
from serving.data_dir import default_data_dir
from serving.demo.prepare import demo_base
from serving.demo.texts import TASKS

_DEV = 500
_TEST = 1000


@dataclass(frozen=True)
class Task:
    """Labelled text in three disjoint parts, and how to train on it."""

    name: str
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    recipe: Recipe

    def fine_tune(self, seed: int, folder: Path) -> Path:
        """The folder of the fine-tune with this seed; it is trained unless `folder` holds it already."""
        recipe = Recipe(**{**self.recipe.__dict__, "seed": seed})
        made_from = hashlib.sha256(f"{recipe} {self.train}".encode()).hexdigest()[:12]
        out = folder / f"{self.name}-{seed}-{made_from}"
        if not out.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with Progress(transient=True) as bar:
                row = bar.add_task(f"fine-tuning {self.name}, seed {seed}", total=None)

                def show(step: Step) -> None:
                    bar.update(row, completed=step.number, total=step.total)

                finetune(demo_base(), self.train, out, recipe, show)
        return out


def with_fine_tune_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with two more options: the folder of the texts, and the folder where fine-tunes are kept."""
    data_dir = Path(os.environ.get("KEN_DATA_DIR") or default_data_dir()).expanduser()
    texts = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--texts", type=Path, default=texts, help="folder with trec/ and rotten_tomatoes/, if any")
    parser.add_argument("--models", type=Path, default=data_dir / "benchmarks", help="where fine-tunes are kept")
    return parser


def tasks(texts: Path) -> list[Task]:
    """TREC and rotten tomatoes, if `texts` holds them, and the demonstration's news."""
    found = [_from_files(name, texts / name) for name in ("trec", "rotten_tomatoes") if (texts / name).is_dir()]
    return [*found, _of_the_demo("news")]


def more_tasks() -> list[Task]:
    """The demonstration's other two tasks, and the topics of WordNet's nouns and verbs if the dictionary is there."""
    found = [_of_the_demo(task.name) for task in TASKS if task.name != "news"]
    if (wordnet.FOLDER / "data.noun").exists():
        found += [_definitions("noun", most=200), _definitions("verb", most=270)]
    return found


def _from_files(name: str, folder: Path) -> Task:
    train, test = read_examples(folder / "train.jsonl"), read_examples(folder / "test.jsonl")
    random.Random(0).shuffle(train)
    return Task(name, train[_DEV:], train[:_DEV], test, Recipe())


def _of_the_demo(name: str) -> Task:
    demo = next(t for t in TASKS if t.name == name)
    train, test = demo.split()
    used = {e.text for e in (*train, *test)}
    rest = sorted((e for e in set(demo.load()) if e.text not in used), key=lambda e: (e.text, e.label))
    dev = random.Random(0).sample(rest, min(_DEV, len(rest)))
    return Task(name, train, dev, test, Recipe(epochs=3, learning_rate=1e-4))


def _definitions(speech: Literal["noun", "verb"], most: int) -> Task:
    examples = wordnet.definitions(speech, most)
    test, dev, train = examples[:_TEST], examples[_TEST : _TEST + _DEV], examples[_TEST + _DEV :]
    return Task(f"wordnet-{speech}s", train, dev, test, Recipe())
