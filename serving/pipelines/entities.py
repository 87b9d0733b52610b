"""From scores of a text's tokens to what was recognised in it, by the rules of Transformers' token classification.

Tokens become words (strategies `first`, `average`, `max`; the others leave them alone), and neighbours of one tag
become one entity. A label ``B-x`` begins an entity of tag x, ``I-x`` goes on with one, and any other label is a tag
by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from ken_core.tokenization import Encoder, Window
from serving.pipelines.base import Float64

T = TypeVar("T")
Strategy = Literal["none", "simple", "first", "average", "max"]


@dataclass(frozen=True)
class Entity:
    """A token, or words of one tag: characters `start` to `end` of the text.

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


class _Piece(NamedTuple):
    """A window's tokens from `first` to `last`, judged as one."""

    first: int
    last: int
    label: str
    score: float


@dataclass(frozen=True)
class _Reading:
    """A window's tokens as parts of the text."""

    window: Window
    text: str
    encoder: Encoder

    def spelling(self, token: int) -> str:
        if self._is_unknown(token):
            start, end = self.window.offsets[token]
            return self.text[start:end]
        return self.encoder.token(self.window.ids[token])

    def joined(self, piece: _Piece) -> str:
        return self.encoder.joined([self.spelling(token) for token in range(piece.first, piece.last + 1)])

    def goes_on(self, _: int, token: int) -> bool:
        """Whether a token goes on with the word of the one before; a guess where the tokenizer does not mark that."""
        if self._is_unknown(token):
            return False
        start, end = self.window.offsets[token]
        if self.encoder.marks_continuations:
            return len(self.spelling(token)) != end - start
        return start > 0 and " " not in self.text[start - 1 : start + 1]

    def _is_unknown(self, token: int) -> bool:
        return self.window.ids[token] == self.encoder.unk_id


def entities_of(
    window: Window,
    scores: Float64,
    text: str,
    encoder: Encoder,
    labels: Mapping[int, str],
    strategy: Strategy,
    ignored: Collection[str],
) -> list[Entity]:
    """What a row says about its part of a text.

    Args:
        scores: probabilities of the window's own tokens, shape (tokens, labels).
        ignored: labels, of entities without ``B-`` and ``I-``, that are left out.
    """
    reading = _Reading(window, text, encoder)
    if strategy == "none":
        return [_token(piece, reading) for piece in _tokens(scores, labels) if piece.label not in ignored]
    if strategy == "simple":
        return [
            _entity(run, reading, reading.joined(_Piece(run[0].first, run[-1].last, "", 0.0)))
            for run in _runs(_tokens(scores, labels))
            if _name(run) not in ignored
        ]
    return [
        _entity(run, reading, encoder.joined([reading.joined(word) for word in run]))
        for run in _runs(_words(reading, scores, labels, _MERGE[strategy]))
        if _name(run) not in ignored
    ]


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


# Pieces


def _tokens(scores: Float64, labels: Mapping[int, str]) -> Iterator[_Piece]:
    best, score = scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist()
    return (_Piece(i, i, labels[best[i]], score[i]) for i in range(len(best)))


_MERGE: Mapping[str, Callable[[Float64], Float64]] = {
    "first": lambda scores: scores[0],
    "average": lambda scores: np.asarray(scores.mean(axis=0)),
    "max": lambda scores: scores[scores.max(axis=1).argmax()],
}
"""The scores of a word from the scores of its tokens."""


def _words(
    reading: _Reading, scores: Float64, labels: Mapping[int, str], merge: Callable[[Float64], Float64]
) -> Iterator[_Piece]:
    for word in _split(range(len(scores)), reading.goes_on):
        merged = merge(scores[word[0] : word[-1] + 1])
        best = int(merged.argmax())
        yield _Piece(word[0], word[-1], labels[best], float(merged[best]))


def _runs(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Neighbours of one tag."""
    return _split(pieces, lambda before, piece: _tag(piece) == _tag(before) and not piece.label.startswith("B-"))


def _split(items: Iterable[T], goes_on: Callable[[T, T], bool]) -> Iterator[list[T]]:
    """Runs of items; `goes_on` says of two neighbours whether the second belongs to the run of the first."""
    run: list[T] = []
    for item in items:
        if run and not goes_on(run[-1], item):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _tag(piece: _Piece) -> str:
    return piece.label[2:] if piece.label.startswith(("B-", "I-")) else piece.label


# Entities


def _token(piece: _Piece, reading: _Reading) -> Entity:
    start, end = reading.window.offsets[piece.first]
    word = reading.spelling(piece.first)
    return Entity(piece.label, piece.score, word, start, end, reading.window.at + piece.first)


def _entity(run: list[_Piece], reading: _Reading, word: str) -> Entity:
    offsets = reading.window.offsets
    score = sum(piece.score for piece in run) / len(run)
    return Entity(_name(run), score, word, offsets[run[0].first][0], offsets[run[-1].last][1])


def _name(run: list[_Piece]) -> str:
    return run[0].label.split("-", 1)[-1]
