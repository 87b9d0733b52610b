"""Comparisons alone: when two answers of one kind agree, and how far apart they are."""

from __future__ import annotations

from typing import Any

import pytest

from serving.routing.agreement import Comparison, compare_each
from serving.routing.kinds import KINDS


def labels(**scores: float) -> list[dict[str, Any]]:
    return [{"label": label, "score": score} for label, score in scores.items()]


def entity(label: str, start: int, score: float) -> dict[str, Any]:
    return {"entity_group": label, "score": score, "word": "ada", "start": start, "end": start + 3}


def token(label: str, start: int, score: float) -> dict[str, Any]:
    return {"entity": label, "score": score, "index": 1, "word": "ada", "start": start, "end": start + 3}


def answer(text: str, score: float, start: int = 0) -> dict[str, Any]:
    return {"score": score, "start": start, "end": start + len(text), "answer": text}


def ranked(*indices: int, first: float = 0.9) -> list[dict[str, Any]]:
    return [{"index": index, "score": first - place / 10} for place, index in enumerate(indices)]


def candidates(**scores: float) -> dict[str, Any]:
    return {"sequence": "rain", "labels": list(scores), "scores": list(scores.values())}


CLASSES, TAGS, QA = "text-classification", "token-classification", "question-answering"
RANKS, ZERO_SHOT, TOKENS, SENTENCES = (
    "rerank", "zero-shot-classification", "feature-extraction", "sentence-embeddings",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "given", "shadowed", "agreed", "difference"),
    [
        (CLASSES, labels(spam=0.75, ham=0.25), labels(spam=0.625, ham=0.375), True, 0.125),
        (CLASSES, labels(spam=0.75, ham=0.25), labels(ham=0.5, spam=0.5), False, 0.25),
        (CLASSES, labels(spam=0.75), labels(ham=0.5), False, None),
        (TAGS, [entity("PER", 0, 0.5), entity("LOC", 9, 1.0)], [entity("LOC", 9, 0.5), entity("PER", 0, 0.5)], True,
         0.5),
        (TAGS, [entity("PER", 0, 0.5), entity("LOC", 9, 1.0)], [entity("PER", 0, 0.25)], False, 0.25),
        (TAGS, [token("B-PER", 0, 0.5)], [token("I-PER", 0, 0.5)], False, None),
        (TAGS, [], [], True, None),
        (QA, answer("Paris", 0.75), answer("Paris", 0.5, start=40), True, 0.25),
        (QA, answer("Paris", 0.75), answer("", 0.5), False, None),
        (QA, [answer("Paris", 0.75), answer("Rome", 0.25)], [answer("Rome", 0.5), answer("Paris", 0.5)], False, 0.25),
        (RANKS, ranked(2, 0, 1), ranked(2, 0, 1, first=0.65), True, 0.25),
        (RANKS, ranked(2, 0, 1), ranked(2, 1, 0), False, 0.1),
        (ZERO_SHOT, candidates(sport=0.5, art=0.3, law=0.2), candidates(sport=0.4, law=0.35, art=0.25), True, 0.15),
        (ZERO_SHOT, candidates(sport=0.5, art=0.5), candidates(art=0.75, sport=0.25), False, 0.25),
        (SENTENCES, [1.0, 0.0], [3.0, 0.0], True, 0.0),
        (SENTENCES, [1.0, 0.0], [0.0, 1.0], False, 1.0),
        (SENTENCES, [1.0, 0.0], [-1.0, 0.0], False, 2.0),
        (SENTENCES, [0.0, 0.0], [0.0, 0.0], True, 0.0),
        (SENTENCES, [0.0, 0.0], [0.0, 1.0], False, 1.0),
        (TOKENS, [[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [2.0, 2.0]], True, 0.0),
        (TOKENS, [[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], False, 1 - 0.5**0.5),
        (TOKENS, [[1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]], False, None),
    ],
)  # fmt: skip
def test_answers_of_a_kind_are_compared_by_what_matters_of_it(
    kind: str, given: Any, shadowed: Any, agreed: bool, difference: float | None
) -> None:
    expected = None if difference is None else pytest.approx(difference, abs=1e-12)
    for ours, theirs in ((given, shadowed), (shadowed, given)):
        assert compare_each(KINDS[kind].compare, [ours], [theirs]) == [Comparison(agreed, expected)]  # type: ignore[arg-type]


def test_each_input_of_a_request_agrees_or_differs_by_itself() -> None:
    same, near, far = labels(spam=1.0), labels(spam=0.75), labels(ham=1.0, spam=0.5)
    found = compare_each(KINDS[CLASSES].compare, [same, same, same], [same, far, near])
    assert found == [Comparison(True, 0.0), Comparison(False, 0.5), Comparison(True, 0.25)]
