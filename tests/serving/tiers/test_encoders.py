"""Tasks that encode alike share one tokenizer, which goes when the last of them does."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest

import ken_core
from ken_core import Delta, open_tuned
from ken_core.embedding import Embedding
from serving.tiers.encoders import Encoders
from tests.tiny_checkpoints import TEXTS, WORDS, Tiny, write_tokenizer

LIMITED = Embedding(pooling=("mean",), max_length=9)


@pytest.fixture(scope="module")
def plain(tiny: Tiny) -> Delta:
    return ken_core.extract(tiny.base, open_tuned(str(tiny.embedding("sharing", seed=97))))


@pytest.fixture(scope="module")
def reworded(tiny: Tiny) -> Delta:
    folder = tiny.embedding("sharing-not", seed=98)
    write_tokenizer(folder, [*reversed(WORDS)])
    return ken_core.extract(tiny.base, open_tuned(str(folder)))


@pytest.fixture
def encoders(tiny: Tiny) -> Encoders:
    return Encoders(tiny.base)


def test_tasks_share_the_bases_tokenizer_unless_something_differs(encoders: Encoders, plain: Delta) -> None:
    pooled = replace(plain, embedding=Embedding(pooling=("cls",), prompts={"query": "where is "}))
    assert encoders.of(plain) is encoders.of(pooled) is encoders.of_base


def test_what_is_encoded_alike_shares_one_and_what_is_not_does_not(
    encoders: Encoders, plain: Delta, reworded: Delta
) -> None:
    limited = replace(plain, embedding=LIMITED)
    kinds = [
        limited,
        reworded,
        replace(reworded, embedding=LIMITED),
        replace(plain, embedding=LIMITED.model_copy(update={"lowercase": True})),
        replace(plain, embedding=LIMITED.model_copy(update={"max_length": 8})),
    ]
    found = [encoders.of(kind) for kind in kinds]
    assert len(set(map(id, [*found, encoders.of_base]))) == len(kinds) + 1
    assert [encoders.of(kind) for kind in kinds] == found
    other = replace(limited, embedding=Embedding(pooling=("max",), max_length=9, prompts={"a": "b"}))
    assert encoders.of(other) is found[0]
    assert {len(encoder([" ".join(TEXTS)])[0]) for encoder in (found[0], found[2])} == {9}


def test_a_tokenizer_that_no_task_holds_goes(encoders: Encoders, reworded: Delta) -> None:
    held = weakref.ref(encoders.of(reworded))
    gc.collect()
    assert held() is None
