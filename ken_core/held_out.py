"""Dividing text into a part to train on or to choose by, and a part to judge on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from ken_core.examples import Example
from ken_core.labels import Label
from ken_core.tokenization import Input

E = TypeVar("E")


def hold_out(examples: Sequence[E], share: float, seed: int = 0) -> tuple[list[E], list[E]]:
    """Divide examples so that each label has its share of both parts, and at least one example to train on. Examples
    without labels are as if they had one label.

    Args:
        share: of the examples to hold out, from 0 up to but not including 1. Their number is rounded, so that nothing
            is held out of a few examples.
        seed: the same examples and the same seed give the same parts.

    Returns:
        The examples to train on and those held out, each in the order given.
    """
    held = _drawn([e.label if isinstance(e, Example) else "" for e in examples], share, seed)
    return [e for i, e in enumerate(examples) if i not in held], [examples[i] for i in sorted(held)]


def divide(
    texts: Sequence[Input], labels: Sequence[Label] | None, share: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Divide examples so that no text is in both parts, and each label has its share of both.

    An example that occurs again, text and label, is counted once. A text with several labels is drawn as one, by the
    first of them.

    Args:
        labels: of each text; None: there are none.
        share: of the texts to put into the first part, from 0 up to but not including 1.
        seed: the same examples and the same seed give the same parts.

    Returns:
        The places of both parts, each in ascending order.
    """
    of_each = list(labels) if labels is not None else [""] * len(texts)
    first_of_text: dict[Input, Label] = {}
    places: dict[tuple[Input, Label], int] = {}
    for place, (text, label) in enumerate(zip(texts, of_each, strict=True)):
        first_of_text.setdefault(text, label)
        places.setdefault((text, label), place)
    distinct = list(first_of_text)
    drawn = {distinct[i] for i in _drawn(list(first_of_text.values()), share, seed)}
    first = [place for (text, _), place in places.items() if text in drawn]
    return first, [place for (text, _), place in places.items() if text not in drawn]


def _drawn(labels: Sequence[Label], share: float, seed: int) -> set[int]:
    """Places drawn at random, the same share of each label."""
    chosen = random.Random(seed)  # noqa: S311 - not for secrets
    places: dict[Label, list[int]] = {}
    for i, label in enumerate(labels):
        places.setdefault(label, []).append(i)
    counts = _counts({label: len(found) for label, found in places.items()}, share)
    return {i for label, found in places.items() for i in chosen.sample(found, counts[label])}


def _counts(sizes: dict[Label, int], share: float) -> dict[Label, int]:
    """How many to hold out of each label: its share, rounded by the method of the largest remainder."""
    counts = {label: min(int(size * share), size - 1) for label, size in sizes.items()}
    left = round(sum(sizes.values()) * share) - sum(counts.values())
    by_remainder = sorted(sizes, key=lambda label: counts[label] - sizes[label] * share)
    for label in [label for label in by_remainder if counts[label] < sizes[label] - 1][:left]:
        counts[label] += 1
    return counts
