"""How far a shadow's answers agree with the answers that were given. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SAME_DIRECTION = 0.99
"""Two vectors agree if their cosine is at least this. It is a convention; the differences say more."""


@dataclass(frozen=True)
class Comparison:
    """How two versions' answers to one input compare.

    Attributes:
        agreed: whether the answers agree: on the best label, the best answer, the entities, the order of texts, or the
            direction of vectors.
        difference: the largest difference between two scores of the same thing; for vectors, 1 - cosine. None if the
            answers have nothing in common that could be compared.
    """

    agreed: bool
    difference: float | None


Compare = Callable[[Any, Any], Comparison]
"""Compares two outputs for one input, which have the form that `Pipeline.present` of their kind gives them."""


def compare_each(compare: Compare, given: Sequence[Any], shadowed: Sequence[Any]) -> list[Comparison]:
    """Compare the outputs of one request, input by input."""
    return [compare(ours, theirs) for ours, theirs in zip(given, shadowed, strict=True)]


@dataclass(frozen=True)
class _Said:
    """The main statement of an output, and the score of each thing that the output scores."""

    verdict: object
    scores: Mapping[Hashable, float]


def _labels(output: Sequence[Mapping[str, Any]]) -> _Said:
    return _Said(output[0]["label"], {one["label"]: one["score"] for one in output})


def _entities(output: Sequence[Mapping[str, Any]]) -> _Said:
    scores: dict[Hashable, float] = {
        (one.get("entity_group") or one["entity"], one["start"], one["end"]): one["score"] for one in output
    }
    return _Said(set(scores), scores)


def _answers(output: Any) -> _Said:
    best_last = output[::-1] if isinstance(output, list) else [output]
    return _Said(best_last[-1]["answer"], {one["answer"]: one["score"] for one in best_last})


def _order(output: Sequence[Mapping[str, Any]]) -> _Said:
    return _Said([one["index"] for one in output], {one["index"]: one["score"] for one in output})


def _candidates(output: Mapping[str, Any]) -> _Said:
    return _Said(output["labels"][0], dict(zip(output["labels"], output["scores"], strict=True)))


def _by(read: Callable[[Any], _Said]) -> Compare:
    def compared(given: Any, shadowed: Any) -> Comparison:
        ours, theirs = read(given), read(shadowed)
        common = ours.scores.keys() & theirs.scores.keys()
        differences = [abs(ours.scores[one] - theirs.scores[one]) for one in common]
        return Comparison(ours.verdict == theirs.verdict, max(differences, default=None))

    return compared


def compare_vectors(given: Any, shadowed: Any) -> Comparison:
    """Compare one vector per text, or one per token; the pair that is furthest apart counts."""
    import numpy as np  # imported late: the store and the command line import this module and compare nothing

    ours, theirs = np.atleast_2d(given), np.atleast_2d(shadowed)
    if ours.shape != theirs.shape:  # the tokenizers differ, so tokens cannot be paired
        return Comparison(False, None)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = (ours * theirs).sum(axis=1)
    cosines = np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1.0), (ours == theirs).all(axis=1))
    least = float(cosines.min())
    return Comparison(least >= _SAME_DIRECTION, max(0.0, 1.0 - least))


def compare_texts(given: Mapping[str, Any], shadowed: Mapping[str, Any]) -> Comparison:
    """Compare generated texts, which have no scores."""
    return Comparison(given["generated_text"] == shadowed["generated_text"], None)


compare_labels = _by(_labels)
compare_entities = _by(_entities)
compare_answers = _by(_answers)
compare_orders = _by(_order)
compare_candidates = _by(_candidates)
