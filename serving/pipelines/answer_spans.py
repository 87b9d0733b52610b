"""From scores of where an answer begins and ends to the answers themselves, as Transformers' pipeline chose them.

Only the context's tokens of a row can begin or end an answer. The model's token for "no answer" ([CLS]) takes its share
of the probability beside them. The score of an answer is the product of the two probabilities. Answers that read alike,
upper and lower case aside, become one answer, and their scores add up: at times to more than 1, where windows overlap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ken_core.tokenization import Window
from serving.pipelines.base import Float64


@dataclass(frozen=True)
class Answer:
    """Characters `start` to `end` of the context."""

    score: float
    start: int
    end: int


@dataclass(frozen=True)
class Probabilities:
    """Where in a window of the context an answer begins and ends.

    Attributes:
        start: probability that the answer begins at each of the context's tokens, shape (tokens,).
        end: probability that it ends there, shape (tokens,).
        none: probability that there is no answer.
    """

    start: Float64
    end: Float64
    none: float

    @classmethod
    def of(cls, window: Window, logits: Float64, cls_id: int | None) -> Probabilities:
        """From logits of shape (2, tokens of the row)."""
        context = slice(window.at, window.at + len(window.offsets))
        possible = np.asarray(window.row.ids) == cls_id
        possible[context] = True
        shifted = np.where(possible, logits, -np.inf)
        exponents = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        start, end = exponents / exponents.sum(axis=1, keepdims=True)
        return cls(start[context], end[context], float(start[0] * end[0]))


def best_answers(window: Window, found: Probabilities, most: int, longest: int, whole_words: bool) -> list[Answer]:
    """The likeliest answers in a window, best first.

    Args:
        most: how many spans of tokens are looked at; as whole words, several may become one answer.
        longest: tokens of an answer.
        whole_words: extend an answer to the words its first and last token are parts of.
    """
    tokens = len(found.start)
    longest = min(longest, tokens)
    ends = sliding_window_view(np.pad(found.end, (0, longest - 1)), longest)
    scores = (found.start[:, None] * ends).ravel()
    top = np.argpartition(-scores, most - 1)[:most] if most < len(scores) else np.arange(len(scores))
    characters = _whole_words(window) if whole_words else window.offsets
    answers = []
    for place in top[np.argsort(-scores[top], kind="stable")].tolist():
        first, last = place // longest, place // longest + place % longest
        if scores[place] > 0:  # beyond the last token there is none
            answers.append(Answer(float(scores[place]), characters[first][0], characters[last][1]))
    return answers


def merged(answers: Iterable[Answer], context: str) -> list[Answer]:
    """One answer for all answers that read alike, at the place of the first of them; best first."""
    by_text: dict[str, Answer] = {}
    for answer in answers:
        text = context[answer.start : answer.end].lower()
        known = by_text.get(text, Answer(0.0, answer.start, answer.end))
        by_text[text] = Answer(known.score + answer.score, known.start, known.end)
    return sorted(by_text.values(), key=lambda answer: -answer.score)


def _whole_words(window: Window) -> list[tuple[int, int]]:
    """For each token, the characters of the word it is part of; of the token itself where it is part of no word."""
    first: dict[int | None, int] = {}
    last: dict[int | None, int] = {}
    for word, (start, end) in zip(window.words, window.offsets, strict=True):
        first.setdefault(word, start)
        last[word] = end
    return [
        own if word is None else (first[word], last[word])
        for word, own in zip(window.words, window.offsets, strict=True)
    ]
