"""Texts that follow grammars, made of random numbers in place of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from ken_core.tokenization import Encoder
from serving.grammar.compiling import compiled
from serving.grammar.grammar import Grammar
from serving.grammar.state import GrammarState
from serving.grammar.vocabulary import Vocabularies
from serving.workers.steps import finish

VOCABULARIES = Vocabularies()


@contextmanager
def followed(grammar: Grammar, encoder: Encoder) -> Iterator[GrammarState]:
    matcher = finish(compiled(grammar, encoder, VOCABULARIES))
    with ThreadPoolExecutor(1) as threads:
        yield GrammarState(matcher, threads, grammar.at)


def written(grammar: Grammar, encoder: Encoder, seed: int, ends: Sequence[int] = (), most: int = 400) -> str | None:
    """A text of random tokens that the grammar allows, those that end JSON more often; None: it did not end in time."""
    generator = torch.Generator().manual_seed(seed)
    size = encoder.largest_ids[0] + 1
    closing = torch.tensor([encoder.bytes_of(token)[:1] in (b'"', b"]", b"}") for token in range(size)]) * 3.0
    ids: list[int] = []
    with followed(grammar, encoder) as state:
        for _ in range(most):
            scores = torch.randn(size, generator=generator) + closing
            token = int(state.restrict(scores, ends).argmax())
            if token in ends:
                return encoder.text_of(ids)
            ids.append(token)
            if state.take(token):
                return encoder.text_of(ids)
    return None


def refused_at(state: Any, encoder: Encoder, text: str) -> int | None:
    """The place of the first token of a text that may not come; None: all may."""
    ids = encoder.prompt(text, special=False)
    for place, token in enumerate(ids):
        scores = torch.zeros(encoder.largest_ids[0] + 1)
        if torch.isneginf(state.restrict(scores, ())[token]):
            return place
        if state.take(token):
            return place + 1 if place + 1 < len(ids) else None
    return None
