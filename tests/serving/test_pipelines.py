"""Answers equal those of Transformers' own pipelines on the folder that `ken apply` writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification, pipeline

from ken_core import DeltaFile
from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError, UnsupportedKindError
from serving.pipelines import default_kind
from serving.pipelines.base import Prepared, TaskSpec
from serving.pipelines.text_classification import ClassificationParameters, TextClassification
from serving.service import Service
from tests.tiny_checkpoints import TEXTS, WORDS, Tiny, load_backbone, write_tokenizer

PROBLEMS = {
    "single-label": (["anger", "joy", "fear"], None),
    "declared single-label": (["no", "yes"], "single_label_classification"),
    "multi-label": (["anger", "joy", "fear", "calm"], "multi_label_classification"),
    "one logit": (["toxic"], None),
    "regression": (["stars"], "regression"),
    "regression of two": (["stars", "length"], "regression"),
}
PAIRS = [{"text": TEXTS[0], "text_pair": TEXTS[1]}, {"text": TEXTS[2], "text_pair": TEXTS[3]}]


@pytest.fixture(scope="module")
def problem(tiny: Tiny) -> Callable[[str], DeltaFile]:
    made: dict[str, DeltaFile] = {}

    def delta(name: str) -> DeltaFile:
        if name not in made:
            labels, problem_type = PROBLEMS[name]
            made[name] = tiny.delta(tiny.tuned(name.replace(" ", "-"), labels, 20 + len(made), problem_type))
        return made[name]

    return delta


@pytest.fixture
def ask(make_service: Callable[..., Service], publish: Callable[..., None]) -> Callable[..., list[Any]]:
    """Publish a delta and ask it."""
    service = make_service()

    def run(file: DeltaFile, inputs: list[Any], **parameters: Any) -> list[Any]:
        publish("task", file)
        return asyncio.run(service.predict(file.digest, inputs, parameters, 20)).outputs

    return run


def same_scores(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    ours, theirs = ({row["label"]: row["score"] for row in rows} for rows in (found, expected))
    return ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_classification_scores_are_those_of_transformers(
    name: str, problem: Callable[[str], DeltaFile], ask: Callable[..., list[Any]], tiny: Tiny
) -> None:
    file = problem(name)
    reference = pipeline("text-classification", model=str(tiny.applied(file)), top_k=None)
    for found, text in zip(ask(file, list(TEXTS)), TEXTS, strict=True):
        assert same_scores(found, reference(text)[0])
        assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_another_function_of_the_logits_may_be_asked_for(
    function: str, problem: Callable[[str], DeltaFile], ask: Callable[..., list[Any]], tiny: Tiny
) -> None:
    file = problem("single-label")
    reference = pipeline("text-classification", model=str(tiny.applied(file)), top_k=None)
    expected = reference(TEXTS[0], function_to_apply=function)[0]
    assert same_scores(ask(file, [TEXTS[0]], function_to_apply=function)[0], expected)


def test_pairs_are_scored_as_transformers_scores_them(
    problem: Callable[[str], DeltaFile], ask: Callable[..., list[Any]], tiny: Tiny
) -> None:
    file = problem("single-label")
    reference = pipeline("text-classification", model=str(tiny.applied(file)), top_k=None)
    for found, pair in zip(ask(file, PAIRS), PAIRS, strict=True):
        assert same_scores(found, reference(pair))


def test_top_k_gives_the_k_highest(problem: Callable[[str], DeltaFile], ask: Callable[..., list[Any]]) -> None:
    file = problem("multi-label")
    everything = ask(file, [TEXTS[0]])[0]
    assert ask(file, [TEXTS[0]], top_k=2)[0] == everything[:2]
    assert ask(file, [TEXTS[0]], top_k=99)[0] == everything


def test_scores_far_from_zero_neither_overflow_nor_warn(tiny: Tiny) -> None:
    spec = TaskSpec(tiny.base.config, Encoder(tiny.base, tiny.base.config, {}), None, False)
    for function in ("softmax", "sigmoid"):
        with np.errstate(all="raise", under="ignore"):
            rows = TextClassification().present(
                Prepared((), False),
                [np.array([-1e4, 1e4], np.float32)],
                spec,
                ClassificationParameters(function_to_apply=function),
            )
        assert [row["score"] for row in rows] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": "many"}, "top_k"),
        ({"function_to_apply": "relu"}, "function_to_apply"),
        ({"pooling": "mean"}, "pooling"),
    ],
)
def test_parameters_of_another_form_are_refused_by_name(
    parameters: dict[str, Any], named: str, problem: Callable[[str], DeltaFile], ask: Callable[..., list[Any]]
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        ask(problem("single-label"), ["rain"], **parameters)


# Feature extraction


@pytest.fixture(scope="module")
def embedding(tiny: Tiny) -> DeltaFile:
    return tiny.delta(tiny.embedding("embedding", seed=30))


@pytest.fixture(scope="module")
def token_vectors(tiny: Tiny, embedding: DeltaFile) -> Callable[[str], np.ndarray]:
    reference = pipeline("feature-extraction", model=str(tiny.applied(embedding)))
    return lambda text: np.array(reference(text)[0])


POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda states: states,
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
    "mean": lambda states: states.mean(axis=0),
}


@pytest.mark.parametrize("pooling", POOLED)
def test_vectors_are_pooled_from_those_of_transformers(
    pooling: str, embedding: DeltaFile, ask: Callable[..., list[Any]], token_vectors: Callable[[str], np.ndarray]
) -> None:
    for found, text in zip(ask(embedding, list(TEXTS), pooling=pooling), TEXTS, strict=True):
        np.testing.assert_allclose(found, POOLED[pooling](token_vectors(text)), atol=1e-5)


def test_without_a_word_about_it_vectors_are_averaged(
    embedding: DeltaFile, ask: Callable[..., list[Any]], token_vectors: Callable[[str], np.ndarray]
) -> None:
    np.testing.assert_allclose(ask(embedding, [TEXTS[2]])[0], token_vectors(TEXTS[2]).mean(axis=0), atol=1e-5)


def test_a_tasks_own_pooling_is_kept_unless_another_is_asked_for(tiny: Tiny, ask: Callable[..., list[Any]]) -> None:
    file = tiny.delta(tiny.embedding("embedding-cls", seed=30, pooling="cls_token"))
    (own,), (cls,), (mean,) = (ask(file, [TEXTS[2]], **p) for p in ({}, {"pooling": "cls"}, {"pooling": "mean"}))
    assert own == cls
    assert own != mean


@pytest.mark.parametrize("pooling", POOLED)
def test_normalised_vectors_have_length_one_and_the_same_direction(
    pooling: str, embedding: DeltaFile, ask: Callable[..., list[Any]]
) -> None:
    plain, unit = (np.array(ask(embedding, [TEXTS[2]], pooling=pooling, normalize=n)[0]) for n in (False, True))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(plain, axis=-1, keepdims=True), plain, atol=1e-5)


# Fine-tunes that change more than weights


def test_a_task_with_words_and_a_tokenizer_of_its_own_answers_as_its_own_model(
    tiny: Tiny, ask: Callable[..., list[Any]]
) -> None:
    """Added tokens: the embedding has another shape, so it is stored and served as a whole."""
    folder = tiny.tuned("own-words", ["good", "bad"], seed=40)
    write_tokenizer(folder, [*WORDS, "kumquat", "rambutan"])
    model = BertForSequenceClassification.from_pretrained(folder)
    torch.manual_seed(0)
    model.resize_token_embeddings(model.config.vocab_size + 2)
    model.save_pretrained(folder)
    file = tiny.delta(folder)
    reference = pipeline("text-classification", model=str(tiny.applied(file)), top_k=None)
    texts = ["a kumquat", "the rambutan and the kumquat", "rain"]
    for found, text in zip(ask(file, texts), texts, strict=True):
        assert same_scores(found, reference(text)[0])


def test_a_backbone_without_a_head_equals_the_applied_one(
    tiny: Tiny, embedding: DeltaFile, ask: Callable[..., list[Any]]
) -> None:
    folder = tiny.applied(embedding)
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        expected = load_backbone(folder)(**inputs).last_hidden_state[0].numpy()
    np.testing.assert_allclose(ask(embedding, [TEXTS[0]], pooling="none")[0], expected, atol=1e-5)


def test_a_kind_without_a_pipeline_is_refused_with_the_kinds_there_are() -> None:
    with pytest.raises(UnsupportedKindError, match=r"'question-answering' .* feature-extraction, text-classification"):
        default_kind("fill-mask", None)
