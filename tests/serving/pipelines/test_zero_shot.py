"""Zero-shot classification answers as Transformers' pipeline does on the applied folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sameness import assert_same

from serving.errors import InvalidInputError, TooLargeError
from tests.tiny_architectures import TOKENIZERS, FineTune
from tests.tiny_checkpoints import TEXTS, WORDS

KIND = "zero-shot-classification"
INFERENCE = ("contradiction", "neutral", "entailment")
TOPICS = ["rain", "the city", "unknownword", "a good book"]
LONG = " ".join(WORDS)
INPUTS = [*TEXTS, LONG]


@pytest.fixture(scope="module")
def judge(make_fine_tune_of: Callable[..., FineTune]) -> Callable[..., FineTune]:
    def make(architecture: str = "bert", labels: Sequence[str] = INFERENCE) -> FineTune:
        return make_fine_tune_of(architecture, "judge-" + "-".join(labels), "sequence", labels)

    return make


def by_label(answer: dict[str, Any]) -> dict[str, Any]:
    """Labels whose scores all but agree may come in either order."""
    return {"sequence": answer["sequence"], **dict(zip(answer["labels"], answer["scores"], strict=True))}


@pytest.mark.parametrize("several", [False, True], ids=["one-of-them", "each-by-itself"])
@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_scores_are_those_of_transformers(
    architecture: str, several: bool, judge: Callable[..., FineTune], dedicated_pipeline: Callable[..., Any]
) -> None:
    fine_tune = judge(architecture)
    options = {"candidate_labels": TOPICS, "multi_label": several}
    found = fine_tune.ask(KIND, INPUTS, **options)
    expected = [dedicated_pipeline(KIND, fine_tune)(text, **options) for text in INPUTS]
    assert_same([by_label(one) for one in found], [by_label(one) for one in expected])
    assert all(one["scores"] == sorted(one["scores"], reverse=True) for one in found)
    assert len({tuple(one["labels"]) for one in found}) > 1


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (("Entailment", "not_entailment"), {}),
        (("ENTAILMENT", "neutral", "contradiction"), {"multi_label": True}),
        (INFERENCE, {"hypothesis_template": "it was a film of {}, and more"}),
        (INFERENCE, {"hypothesis_template": "{}" + " and a man" * 12}),
        (INFERENCE, {"candidate_labels": ["rain"]}),
    ],
    ids=["of-two", "entailment-first", "another-template", "long-template", "one-label"],
)
def test_heads_and_parameters_of_other_forms_are_scored_as_transformers_scores_them(
    labels: Sequence[str],
    options: dict[str, Any],
    judge: Callable[..., FineTune],
    dedicated_pipeline: Callable[..., Any],
) -> None:
    fine_tune = judge(labels=labels)
    options = {"candidate_labels": TOPICS, **options}
    found = fine_tune.ask(KIND, INPUTS, **options)
    expected = [dedicated_pipeline(KIND, fine_tune)(text, **options) for text in INPUTS]
    assert_same([by_label(one) for one in found], [by_label(one) for one in expected])
    assert all(one["scores"] == sorted(one["scores"], reverse=True) for one in found)


def test_a_text_is_judged_alike_whoever_else_asks(judge: Callable[..., FineTune]) -> None:
    fine_tune = judge("roberta")
    together = fine_tune.ask(KIND, INPUTS, candidate_labels=TOPICS)
    assert_same(together, [fine_tune.ask(KIND, [text], candidate_labels=TOPICS)[0] for text in INPUTS])


# Refusals


@pytest.mark.parametrize("labels", [("ham", "spam"), ("entailment",)])
def test_a_task_that_was_not_trained_on_inference_says_what_it_would_take(
    labels: Sequence[str], judge: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=rf"label 'entailment' and another; .* '{labels[0]}'"):
        judge(labels=labels).ask(KIND, ["rain"], candidate_labels=TOPICS)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"candidate_labels": None}, "candidate_labels"),
        ({"candidate_labels": []}, "candidate_labels"),
        ({"candidate_labels": [""]}, "candidate_labels"),
        ({"candidate_labels": ["a"] * 257}, "candidate_labels"),
        ({"candidate_labels": "rain, sun"}, "candidate_labels"),
        ({"hypothesis_template": "no gap"}, "hypothesis_template"),
        ({"hypothesis_template": "{} and {}"}, "hypothesis_template"),
        ({"hypothesis_template": "{0.__class__} {}"}, "hypothesis_template"),
        ({"hypothesis_template": "{:>99999999}"}, "hypothesis_template"),
        ({"multi_label": "perhaps"}, "multi_label"),
        ({"top_k": 1}, "top_k"),
    ],
)
def test_parameters_of_another_form_are_refused_by_name(
    parameters: dict[str, Any], named: str, judge: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        judge().ask(KIND, ["rain"], **{"candidate_labels": TOPICS, **parameters})


def test_labels_are_required(judge: Callable[..., FineTune]) -> None:
    with pytest.raises(InvalidInputError, match="candidate_labels"):
        judge().ask(KIND, ["rain"])


def test_a_text_that_would_be_cut_is_refused_by_its_place_where_that_is_not_allowed(
    judge: Callable[..., FineTune],
) -> None:
    with pytest.raises(InvalidInputError, match=r"^inputs\.1: longer than the 64 tokens"):
        judge().ask(KIND, ["rain", LONG], candidate_labels=TOPICS, truncation=False)


def test_a_label_that_leaves_no_room_for_a_text_is_refused_by_its_place(judge: Callable[..., FineTune]) -> None:
    with pytest.raises(InvalidInputError, match=r"^candidate_labels\.1: .* leaves no room"):
        judge().ask(KIND, ["rain"], candidate_labels=["rain", LONG])


def test_more_rows_than_a_request_may_become_are_refused_before_they_are_made(judge: Callable[..., FineTune]) -> None:
    with pytest.raises(TooLargeError, match="rows of more than"):
        judge().ask(KIND, [LONG] * 200, candidate_labels=TOPICS * 32)
