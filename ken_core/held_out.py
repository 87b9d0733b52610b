"""Dividing labelled text into a part to train on and a part to judge on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ken_core.examples import Example
from ken_core.labels import Label


def hold_out(examples: Sequence[Example], share: float, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Divide examples so that each label has its share of both parts, and at least one example to train on.

    Args:
        share: of the examples to hold out, from 0 up to but not including 1. Their number is rounded, so that nothing
            is held out of a few examples.
        seed: the same examples and the same seed give the same parts.

    Returns:
        The examples to train on and those held out, each in the order given.
    """
    chosen = random.Random(seed)  # noqa: S311 - not for secrets
    places: dict[Label, list[int]] = {}
    for i, example in enumerate(examples):
        places.setdefault(example.label, []).append(i)
    counts = _counts({label: len(found) for label, found in places.items()}, share)
    held = {i for label, found in places.items() for i in chosen.sample(found, counts[label])}
    return [e for i, e in enumerate(examples) if i not in held], [examples[i] for i in sorted(held)]


def _counts(sizes: dict[Label, int], share: float) -> dict[Label, int]:
    """How many to hold out of each label: its share, rounded by the method of the largest remainder."""
    counts = {label: min(int(size * share), size - 1) for label, size in sizes.items()}
    left = round(sum(sizes.values()) * share) - sum(counts.values())
    by_remainder = sorted(sizes, key=lambda label: counts[label] - sizes[label] * share)
    for label in [label for label in by_remainder if counts[label] < sizes[label] - 1][:left]:
        counts[label] += 1
    return counts
