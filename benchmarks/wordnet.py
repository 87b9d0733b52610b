"""Definitions of WordNet 3.0 (Fellbaum 1998), labelled with the topic that its editors filed them under.

They are read from the dictionary that Debian's package wordnet-base installs, or from a folder like it.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ken_core.examples import Example

FOLDER = Path("/usr/share/wordnet")

_SHORTEST = 20
"""A definition of fewer characters says too little."""
_TOPICS = {
    "noun": "tops act animal artifact attribute body cognition communication event feeling food group location motive "
    "object person phenomenon plant possession process quantity relation shape state substance time",
    "verb": "body change cognition communication competition consumption contact creation emotion motion perception "
    "possession social stative weather",
}
_FIRST = {"noun": 3, "verb": 29}
"""The number of the first topic in lexnames(5)."""


def definitions(speech: Literal["noun", "verb"], most: int, folder: Path = FOLDER) -> list[Example]:
    """At most `most` definitions of a topic, shuffled with a fixed seed; without examples of use.

    Raises:
        OSError: the folder has no such dictionary.
    """
    by_topic: dict[str, set[str]] = defaultdict(set)
    for entry, text in _entries(speech, folder):
        by_topic[_TOPICS[speech].split()[int(entry.split()[1]) - _FIRST[speech]]].add(text)
    chosen, found = random.Random(0), []
    for topic in sorted(by_topic):
        texts = sorted(by_topic[topic])
        found += [Example(text, topic) for text in chosen.sample(texts, min(most, len(texts)))]
    chosen.shuffle(found)
    return found


def meanings(speech: Literal["noun", "verb"], folder: Path = FOLDER) -> list[tuple[str, str]]:
    """The first word of each entry, and its definition, in the order of the dictionary.

    Raises:
        OSError: the folder has no such dictionary.
    """
    return [(entry.split()[4].replace("_", " "), text) for entry, text in _entries(speech, folder)]


def _entries(speech: Literal["noun", "verb"], folder: Path) -> Iterator[tuple[str, str]]:
    """The fields of each entry as they stand in the file (wndb(5)), and its definition without examples of use."""
    for line in (folder / f"data.{speech}").read_text("utf-8", "ignore").splitlines():
        entry, bar, gloss = line.partition(" | ")
        text = re.sub(r'[;:]? ?"[^"]*"', "", gloss).strip(" ;")
        if bar and not line.startswith(" ") and len(text) >= _SHORTEST:
            yield entry, text
