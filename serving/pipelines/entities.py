"""From scores of a text's tokens to what was recognised in it, by the rules of Transformers' token classification.

Tokens become words (strategies `first`, `average`, `max`; the others leave them alone), and neighbours of one tag
become one entity. A label ``B-x`` begins an entity of tag x, ``I-x`` goes on with one, and any other label is a tag
by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from ken_core.tokenization import Encoder, Window
from serving.pipelines.base import Float64

T = TypeVar("T")
Strategy = Literal["none", "simple", "first", "average", "max"]


@dataclass(frozen=True)
class Entity:
    """A token, a word or neighbours of one tag: characters `start` to `end` of the text.

    Attributes:
        word: its tokens as the tokenizer joins them.
        index: its place in the row, for a token.
    """

    label: str
    score: float
    word: str
    start: int
    end: int
    index: int | None = None


@dataclass(frozen=True)
class _Token:
    word: str
    scores: Float64
    start: int
    end: int
    index: int
    continues: bool
    """Whether it goes on with the word of the token before."""


def entities_of(
    window: Window, scores: Float64, text: str, encoder: Encoder, labels: Mapping[int, str], strategy: Strategy
) -> list[Entity]:
    """What a row says about its part of a text, labels that shall be ignored among it.

    Args:
        scores: probabilities of the window's own tokens, shape (tokens, labels).
    """
    tokens = _tokens(window, scores, text, encoder)
    if strategy in ("none", "simple"):
        entities = [_labelled(t.scores, labels, t.word, t.start, t.end, t.index) for t in tokens]
    else:
        words = _split(tokens, lambda _, token: not token.continues)
        entities = [_word(word, labels, encoder, _MERGE[strategy]) for word in words]
    return entities if strategy == "none" else [_group(run, encoder) for run in _split(entities, _is_another)]


def without_overlaps(entities: Iterable[Entity]) -> list[Entity]:
    """Of entities of overlapping windows that begin inside one another, the longest; of equally long, the surest."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda e: e.start):
        if kept and kept[-1].start <= entity.start < kept[-1].end:
            if (entity.end - entity.start, entity.score) > (kept[-1].end - kept[-1].start, kept[-1].score):
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept


def _tokens(window: Window, scores: Float64, text: str, encoder: Encoder) -> Iterator[_Token]:
    for i, (token_id, (start, end)) in enumerate(zip(window.ids, window.offsets, strict=True)):
        word = encoder.token(token_id)
        if token_id == encoder.unk_id:
            word, continues = text[start:end], False
        elif encoder.marks_continuations:
            continues = len(word) != end - start
        else:
            continues = start > 0 and " " not in text[start - 1 : start + 1]
        yield _Token(word, scores[i], start, end, window.at + i, continues)


_MERGE: Mapping[str, Callable[[list[Float64]], Float64]] = {
    "first": lambda scores: scores[0],
    "average": lambda scores: np.asarray(np.mean(scores, axis=0)),
    "max": lambda scores: max(scores, key=lambda s: float(s.max())),
}


def _word(
    tokens: list[_Token], labels: Mapping[int, str], encoder: Encoder, merge: Callable[[list[Float64]], Float64]
) -> Entity:
    text = encoder.joined([t.word for t in tokens])
    return _labelled(merge([t.scores for t in tokens]), labels, text, tokens[0].start, tokens[-1].end)


def _labelled(
    scores: Float64, labels: Mapping[int, str], word: str, start: int, end: int, index: int | None = None
) -> Entity:
    best = int(scores.argmax())
    return Entity(labels[best], float(scores[best]), word, start, end, index)


def _split(items: Iterable[T], begins: Callable[[T, T], bool]) -> Iterator[list[T]]:
    """Runs of items; `begins` says of an item and the one after it whether the later begins a run."""
    run: list[T] = []
    for item in items:
        if run and begins(run[-1], item):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _is_another(before: Entity, entity: Entity) -> bool:
    return _tag(entity.label) != _tag(before.label) or entity.label.startswith("B-")


def _tag(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _group(run: list[Entity], encoder: Encoder) -> Entity:
    name = run[0].label.split("-", 1)[-1]
    score = sum(e.score for e in run) / len(run)
    return Entity(name, score, encoder.joined([e.word for e in run]), run[0].start, run[-1].end)
