"""Rerank scores pairs as Transformers' text classification does on the applied folder, and puts them in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sameness import assert_same
from sentence_transformers import CrossEncoder

from serving.errors import InvalidInputError, TooLargeError
from tests.tiny_architectures import TOKENIZERS, FineTune
from tests.tiny_checkpoints import TEXTS, WORDS

KIND = "rerank"
LONG = " ".join(WORDS)
DOCUMENTS = [*TEXTS, LONG, "", "東京"]


@pytest.fixture(scope="module")
def judge(make_fine_tune_of: Callable[..., FineTune]) -> Callable[..., FineTune]:
    def make(architecture: str = "bert", labels: Sequence[str] = ("relevant",)) -> FineTune:
        return make_fine_tune_of(architecture, "judge-" + "-".join(labels), "sequence", labels)

    return make


@pytest.fixture(scope="module")
def expected(dedicated_pipeline: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    """Texts in order of the pipeline's scores of (query, text)."""

    def ask(fine_tune: FineTune, query: str, texts: Sequence[str], function: str) -> list[dict[str, Any]]:
        pipeline = dedicated_pipeline("text-classification", fine_tune, top_k=None, truncation=True)
        # as lists: with an empty text as a pair's second, a dictionary asks for no pair
        scores = [pipeline([[[query, text]]], function_to_apply=function)[0][0]["score"] for text in texts]
        return sorted(({"index": i, "score": score} for i, score in enumerate(scores)), key=lambda one: -one["score"])

    return ask


@pytest.mark.parametrize(("raw", "function"), [(False, "sigmoid"), (True, "none")])
@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_texts_are_scored_as_transformers_scores_pairs_the_most_relevant_first(
    architecture: str, raw: bool, function: str, judge: Callable[..., FineTune], expected: Callable[..., Any]
) -> None:
    fine_tune = judge(architecture)
    documents = [text for text in DOCUMENTS if text]
    for query in (TEXTS[0], LONG):
        (found,) = fine_tune.ask(KIND, [{"query": query, "texts": documents}], raw_scores=raw)
        assert_same(found, expected(fine_tune, query, documents, function))


@pytest.mark.parametrize("activation", [None, "torch.nn.modules.linear.Identity", "torch.nn.Sigmoid", "mine.Tanh"])
def test_unless_asked_for_otherwise_scores_are_those_of_a_cross_encoder(
    activation: str | None, make_fine_tune_of: Callable[..., FineTune]
) -> None:
    told = () if activation is None else (("sbert_ce_default_activation_function", activation),)
    fine_tune = make_fine_tune_of("bert", f"cross-{activation}", "sequence", ["relevant"], undeclared=told)
    documents = [text for text in DOCUMENTS if text]
    (found,) = fine_tune.ask(KIND, [{"query": TEXTS[0], "texts": documents}])
    expected = CrossEncoder(str(fine_tune.applied), device="cpu").rank(TEXTS[0], documents)
    assert_same(found, [{"index": one["corpus_id"], "score": float(one["score"])} for one in expected])


def test_a_score_that_is_neither_logit_nor_sigmoid_is_refused_unless_one_of_them_is_asked_for(
    make_fine_tune_of: Callable[..., FineTune],
) -> None:
    told = (("sbert_ce_default_activation_function", "torch.nn.modules.activation.Tanh"),)
    fine_tune = make_fine_tune_of("bert", "cross-tanh", "sequence", ["relevant"], undeclared=told)
    asked = [{"query": "rain", "texts": ["sun"]}]
    with pytest.raises(InvalidInputError, match=r"Tanh.* raw_scores true for logits"):
        fine_tune.ask(KIND, asked)
    assert fine_tune.ask(KIND, asked, raw_scores=False) != fine_tune.ask(KIND, asked, raw_scores=True)


def test_queries_of_one_request_do_not_mix(judge: Callable[..., FineTune]) -> None:
    fine_tune = judge()
    asked = [{"query": query, "texts": DOCUMENTS[i:]} for i, query in enumerate(TEXTS)]
    assert_same(fine_tune.ask(KIND, asked), [fine_tune.ask(KIND, [one])[0] for one in asked])


def test_only_the_best_texts_may_be_asked_for_and_the_texts_themselves(judge: Callable[..., FineTune]) -> None:
    asked = {"query": TEXTS[0], "texts": DOCUMENTS}
    fine_tune = judge()
    (everything,) = fine_tune.ask(KIND, [asked])
    (best,) = fine_tune.ask(KIND, [asked], top_n=2, return_text=True)
    assert best == [{**one, "text": DOCUMENTS[one["index"]]} for one in everything[:2]]


# Refusals


def test_a_task_of_more_than_one_logit_is_refused_with_what_to_ask_it_instead(judge: Callable[..., FineTune]) -> None:
    with pytest.raises(InvalidInputError, match=r"one label, .* this task has 2: ask it for 'text-classification'"):
        judge(labels=("irrelevant", "relevant")).ask(KIND, [{"query": "rain", "texts": ["sun"]}])


@pytest.mark.parametrize(
    "asked",
    [
        "rain",
        {"query": "rain"},
        {"query": "rain", "texts": []},
        {"query": "rain", "texts": ["sun"] * 1001},
        {"query": "rain", "texts": "sun"},
        {"query": None, "texts": ["sun"]},
        {"query": "rain", "texts": ["sun"], "documents": []},
    ],
    ids=["text", "no-texts", "empty", "too-many", "one-text", "no-query", "more"],
)
def test_inputs_of_another_form_are_refused_by_their_place(asked: Any, judge: Callable[..., FineTune]) -> None:
    with pytest.raises(InvalidInputError, match=r"^inputs\.1"):
        judge().ask(KIND, [{"query": "rain", "texts": ["sun"]}, asked])


@pytest.mark.parametrize("parameters", [{"top_n": 0}, {"raw_scores": "perhaps"}, {"return_text": 7}, {"top_k": 1}])
def test_parameters_of_another_form_are_refused_by_name(
    parameters: dict[str, Any], judge: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(parameters))):
        judge().ask(KIND, [{"query": "rain", "texts": ["sun"]}], **parameters)


def test_a_text_that_would_be_cut_is_refused_by_its_place_where_that_is_not_allowed(
    judge: Callable[..., FineTune],
) -> None:
    with pytest.raises(InvalidInputError, match=r"^inputs\.0\.texts\.1: longer than the 64 tokens"):
        judge().ask(KIND, [{"query": "rain", "texts": ["sun", LONG]}], truncation=False)


def test_more_rows_than_a_request_may_become_are_refused_before_they_are_made(judge: Callable[..., FineTune]) -> None:
    """However long the query, it is encoded once."""
    with pytest.raises(TooLargeError, match="rows of more than"):
        judge().ask(KIND, [{"query": "rain " * 20_000, "texts": ["sun"] * 1000}] * 9)
