"""How far a shadow's answers agree with those that were given, by kind. Pure: outputs in, two facts out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_SAME_DIRECTION = 0.99
"""Cosine from which on two vectors count as agreeing: a convention; the differences themselves tell more."""


@dataclass(frozen=True)
class Comparison:
    """Two versions' answers to one request, side by side.

    Attributes:
        agreed: on what matters of every input: the best label or answer, the entities, the order; vectors point the
            same way.
        difference: the largest there is between two scores of the same thing; of vectors, 1 - cosine. None where the
            answers have nothing in common to compare.
    """

    agreed: bool
    difference: float | None


Compare = Callable[[Any, Any], Comparison]
"""Compares two outputs for one input, in the form in which `Pipeline.present` of their kind gives them."""


def compare_all(compare: Compare, given: Sequence[Any], shadowed: Sequence[Any]) -> Comparison:
    """Compare the outputs of one request, one an input."""
    found = [compare(ours, theirs) for ours, theirs in zip(given, shadowed, strict=True)]
    differences = [one.difference for one in found if one.difference is not None]
    return Comparison(all(one.agreed for one in found), max(differences, default=None))


@dataclass(frozen=True)
class _Said:
    """What an output comes down to, and the score of each thing that it scores."""

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
    """Of one vector, or of as many as there are tokens: the pair that lies furthest apart."""
    ours, theirs = np.atleast_2d(given), np.atleast_2d(shadowed)
    if ours.shape != theirs.shape:  # another tokenizer, so that no token has its like
        return Comparison(False, None)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = (ours * theirs).sum(axis=1)
    cosines = np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1.0), (ours == theirs).all(axis=1))
    least = float(cosines.min())
    return Comparison(least >= _SAME_DIRECTION, max(0.0, 1.0 - least))


compare_labels = _by(_labels)
compare_entities = _by(_entities)
compare_answers = _by(_answers)
compare_orders = _by(_order)
compare_candidates = _by(_candidates)
