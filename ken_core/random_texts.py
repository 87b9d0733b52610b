"""Texts of random tokens, for fits where no text like the task's is at hand."""

from __future__ import annotations

import random

from ken_core.tokenization import Encoder

_SHORTEST, _LONGEST = 8, 32
"""Tokens of a text."""


def random_texts(encoder: Encoder, count: int, seed: int = 0) -> list[str]:
    """Texts whose tokens are drawn from the vocabulary, each as likely, without special ones."""
    ids, draw = encoder.plain_ids, random.Random(seed)  # noqa: S311 - not for secrets
    return [
        encoder.joined([encoder.token(i) for i in draw.choices(ids, k=draw.randint(_SHORTEST, _LONGEST))])
        for _ in range(count)
    ]
