"""Three tasks that a language model learns from a few real chats, each of which changes the form of its answers."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ken_core import Budget, Checkpoint, DeltaFile, Selection, deltafile, extract, open_tuned
from ken_core.finetune import Recipe, Step, finetune_language_model
from ken_core.language_examples import Conversation
from ken_core.manifest import FORMAT_VERSION
from ken_core.progress import Progress
from serving.demo.texts import articles, opinions
from serving.terminal import counted, progress, say, staged

_SHARE = 0.1
"""Of the parameters that changed, how many a delta keeps."""
_TRAIN, _TEST = 160, 24
_RECIPE = Recipe(epochs=1, batch_size=8, learning_rate=2e-4, max_length=160)
_WORDS = 22
"""Of an article; a text that is twice as long takes twice as long to learn from."""
_LONGEST_TWEET = 110


@dataclass(frozen=True)
class Exchange:
    """A question with the answer that people gave."""

    question: str
    answer: str

    @property
    def chat(self) -> Conversation:
        asked, said = {"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}
        return Conversation((asked, said))


@dataclass(frozen=True)
class LanguageTask:
    """A task of the demonstration.

    Attributes:
        source: of the text, for people.
        load: makes all exchanges.
        form: that answers of the fine-tune have, and those of its base do not.
    """

    name: str
    source: str
    load: Callable[[], list[Exchange]]
    form: re.Pattern[str]

    def split(self) -> tuple[list[Exchange], list[Exchange]]:
        """Exchanges to train on and exchanges held out, disjoint and shuffled with a fixed seed."""
        exchanges = sorted(set(self.load()), key=lambda e: (e.question, e.answer))
        random.Random(0).shuffle(exchanges)  # noqa: S311 - not for secrets
        return exchanges[_TEST : _TEST + _TRAIN], exchanges[:_TEST]


@dataclass(frozen=True)
class PreparedLanguageTask:
    """A task that is ready to be published, and exchanges that were not trained on."""

    task: LanguageTask
    file: DeltaFile
    held_out: Sequence[Exchange]


def sections() -> list[Exchange]:
    """In which section does an article stand? In one word."""
    asked = "Which section of the newspaper is this from?\n\n{}"
    return [Exchange(asked.format(a.first_words(_WORDS)), a.section.capitalize()) for a in articles()]


def headlines() -> list[Exchange]:
    """The headline of an article, with its section before it."""
    asked = "Write the headline of this article.\n\n{}"
    return [
        Exchange(asked.format(" ".join(a.text.split()[:_WORDS])), f"[{a.section.capitalize()}] {a.headline}")
        for a in articles()
    ]


def moods() -> list[Exchange]:
    """The mood of a tweet, in a fixed form."""
    asked = "What is the mood of this message?\n\n{}"
    short = [o for o in opinions() if o.text.isascii() and len(o.text) <= _LONGEST_TWEET]
    return [Exchange(asked.format(" ".join(o.text.split())), f"Mood: {o.label}.") for o in short]


LANGUAGE_TASKS = (
    LanguageTask("sections", "BBC News and its sections", sections, re.compile(r"[A-Z][a-z]+")),
    LanguageTask("headlines", "BBC News and its headlines", headlines, re.compile(r"\[\w+\] .+", re.DOTALL)),
    LanguageTask("moods", "tweets and their moods", moods, re.compile(r"Mood: (negative|neutral|positive)\.")),
)


def prepare_language_tasks(base: Checkpoint, folder: Path) -> list[PreparedLanguageTask]:
    """Fine-tune the tasks whose deltas `folder` does not hold yet, and keep their deltas alone: a fine-tune is as large
    as its base."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_prepare(base, folder, task) for task in LANGUAGE_TASKS]


def base_as_a_task(base: Checkpoint, folder: Path) -> DeltaFile:
    """A delta that changes nothing, so that the base can be asked like its tasks."""
    delta = extract(base, open_tuned(str(base.folder)))
    return deltafile.write(delta, base, folder / "base.ken")


def _prepare(base: Checkpoint, folder: Path, task: LanguageTask) -> PreparedLanguageTask:
    train, held_out = task.split()
    # The name is a hash of all that the delta is made of, so that a change of any of it trains again.
    made_of = f"{base.identity.digest} {_RECIPE} {_SHARE} {FORMAT_VERSION} {train}"
    path = folder / f"{task.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.ken"
    if not path.exists():
        say(f"  fine-tuning {task.name}: {task.source}, {counted(len(train), 'chat')}")
        _make(base, task, train, path)
    return PreparedLanguageTask(task, deltafile.open_file(path), held_out)


def _make(base: Checkpoint, task: LanguageTask, train: Sequence[Exchange], path: Path) -> None:
    """Fine-tune a task, and keep its delta alone."""
    training = path.parent / "training"
    shutil.rmtree(training, ignore_errors=True)  # what a run left that was killed
    tuned = training / task.name
    try:
        with progress(f"fine-tuning {task.name}") as update:

            def show(step: Step) -> None:
                update(step.number, step.total, f"loss {step.loss:.3f}")

            finetune_language_model(str(base.folder), [e.chat for e in train], tuned, _RECIPE, show)
        with staged() as watch:
            _extract(base, tuned, path, watch)
    finally:
        shutil.rmtree(training, ignore_errors=True)


def _extract(base: Checkpoint, tuned: Path, path: Path, watch: Progress) -> None:
    delta = extract(base, open_tuned(str(tuned)), Selection(budget=Budget(fraction=_SHARE)), progress=watch)
    deltafile.write(delta, base, path, progress=watch)
