"""Text classification answers as Transformers' pipeline does on the applied folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sameness import assert_same

from serving.errors import InternalError, InvalidInputError
from serving.pipelines.base import Prepared
from serving.pipelines.text_classification import ClassificationParameters, TextClassification
from tests.tiny_architectures import TOKENIZERS, FineTune
from tests.tiny_checkpoints import TEXTS, WORDS

KIND = "text-classification"
PROBLEMS = {
    "single-label": (["anger", "joy", "fear"], None),
    "declared single-label": (["no", "yes"], "single_label_classification"),
    "multi-label": (["anger", "joy", "fear", "calm"], "multi_label_classification"),
    "one logit": (["toxic"], None),
    "regression": (["stars"], "regression"),
    "regression of two": (["stars", "length"], "regression"),
}
LONG = " ".join(WORDS)
INPUTS = [*TEXTS, "東京 MÜNCHEN 🙂", LONG]
PAIRS = [(a, b) for a in (*TEXTS[:3], LONG) for b in (TEXTS[3], LONG, "unknownword", "")]


@pytest.fixture(scope="module")
def classifier(make_fine_tune_of: Callable[..., FineTune]) -> Callable[..., FineTune]:
    """``classifier(architecture, problem)``"""

    def make(architecture: str = "bert", problem: str = "single-label", **config: Any) -> FineTune:
        labels, problem_type = PROBLEMS[problem]
        name = "-".join([problem.replace(" ", "-"), *map(str, config.values())])
        return make_fine_tune_of(architecture, name, "sequence", labels, problem_type=problem_type, **config)

    return make


@pytest.fixture(scope="module")
def expected(dedicated_pipeline: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    """What the dedicated pipeline says of one text or pair, all labels, the likeliest first."""

    def ask(fine_tune: FineTune, given: str | tuple[str, str], **options: Any) -> list[dict[str, Any]]:
        pipeline = dedicated_pipeline(KIND, fine_tune, top_k=None, truncation=True)
        if isinstance(given, str):
            return pipeline(given, **options)[0]
        return pipeline({"text": given[0], "text_pair": given[1]}, **options)

    return ask


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_scores_are_those_of_transformers_for_every_architecture(
    architecture: str, classifier: Callable[..., FineTune], expected: Callable[..., Any]
) -> None:
    fine_tune = classifier(architecture)
    for found, text in zip(fine_tune.ask(KIND, INPUTS), INPUTS, strict=True):
        assert_same(found, expected(fine_tune, text))


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_pairs_are_scored_as_transformers_scores_them(
    architecture: str, classifier: Callable[..., FineTune], expected: Callable[..., Any]
) -> None:
    fine_tune = classifier(architecture)
    asked = [{"text": a, "text_pair": b} for a, b in PAIRS]
    for found, pair in zip(fine_tune.ask(KIND, asked), PAIRS, strict=True):
        assert_same(found, expected(fine_tune, pair))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_every_kind_of_problem_is_scored_as_transformers_scores_it(
    architecture: str, problem: str, classifier: Callable[..., FineTune], expected: Callable[..., Any]
) -> None:
    fine_tune = classifier(architecture, problem)
    for found, text in zip(fine_tune.ask(KIND, TEXTS), TEXTS, strict=True):
        assert_same(found, expected(fine_tune, text))


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_another_function_of_the_logits_may_be_asked_for(
    function: str, classifier: Callable[..., FineTune], expected: Callable[..., Any]
) -> None:
    fine_tune = classifier()
    (found,) = fine_tune.ask(KIND, [TEXTS[0]], function_to_apply=function)
    assert_same(found, expected(fine_tune, TEXTS[0], function_to_apply=function))


def test_top_k_gives_the_k_highest(classifier: Callable[..., FineTune]) -> None:
    fine_tune = classifier(problem="multi-label")
    (everything,) = fine_tune.ask(KIND, [TEXTS[0]])
    assert fine_tune.ask(KIND, [TEXTS[0]], top_k=2) == [everything[:2]]
    assert fine_tune.ask(KIND, [TEXTS[0]], top_k=99) == [everything]


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_an_answer_does_not_depend_on_who_else_asks(architecture: str, classifier: Callable[..., FineTune]) -> None:
    fine_tune = classifier(architecture)
    together = fine_tune.ask(KIND, INPUTS)
    for found, text in zip(together, INPUTS, strict=True):
        assert_same(found, fine_tune.ask(KIND, [text])[0])


@pytest.mark.parametrize("padding", [None, 5], ids=["none", "another"])
def test_a_decoder_whose_config_names_no_or_another_padding_than_its_tokenizer_answers_in_batches_too(
    padding: int | None, classifier: Callable[..., FineTune], expected: Callable[..., Any]
) -> None:
    """Transformers takes the last token that is not the config's padding for the text's last."""
    fine_tune = classifier("llama", pad_token_id=padding)
    assert fine_tune.spec.encoder.pad_id != padding
    for found, text in zip(fine_tune.ask(KIND, INPUTS), INPUTS, strict=True):
        assert_same(found, expected(fine_tune, text))


# Refusals


@pytest.mark.parametrize("given", [LONG * 2, {"text": LONG, "text_pair": LONG}], ids=["text", "pair"])
def test_an_input_that_would_be_cut_is_refused_by_its_place_where_that_is_not_allowed(
    given: Any, classifier: Callable[..., FineTune]
) -> None:
    fine_tune = classifier()
    fine_tune.ask(KIND, ["rain", given])
    with pytest.raises(InvalidInputError, match=r"^inputs\.1: longer than the 64 tokens"):
        fine_tune.ask(KIND, ["rain", given], truncation=False)


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
    parameters: dict[str, Any], named: str, classifier: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        classifier().ask(KIND, ["rain"], **parameters)


def test_a_text_without_a_token_is_refused_where_nothing_else_is_in_its_row(
    classifier: Callable[..., FineTune],
) -> None:
    with pytest.raises(InvalidInputError, match=r"^inputs\.1: .* no token"):
        classifier("qwen2").ask(KIND, ["rain", ""])


def test_a_text_without_a_token_is_answered_between_special_ones(
    classifier: Callable[..., FineTune], expected: Callable[..., Any]
) -> None:
    fine_tune = classifier()
    assert_same(fine_tune.ask(KIND, [""])[0], expected(fine_tune, ""))


def test_texts_of_a_hundred_thousand_characters_are_cut(classifier: Callable[..., FineTune]) -> None:
    """`tokenizers` itself would need 17 GB for the pair."""
    fine_tune = classifier()
    huge, short = "rain " * 20_000, "rain " * 100
    assert_same(fine_tune.ask(KIND, [huge]), fine_tune.ask(KIND, [short]))
    assert_same(
        fine_tune.ask(KIND, [{"text": huge, "text_pair": huge}]),
        fine_tune.ask(KIND, [{"text": short, "text_pair": short}]),
    )


# Numbers


def test_scores_far_from_zero_neither_overflow_nor_warn(classifier: Callable[..., FineTune]) -> None:
    spec = classifier(problem="declared single-label").spec
    for function in ("softmax", "sigmoid"):
        with np.errstate(all="raise", under="ignore"):
            rows = TextClassification().present(
                Prepared((), False),
                [np.array([-1e4, 1e4], np.float32)],
                spec,
                ClassificationParameters(function_to_apply=function),
            )
        assert [row["score"] for row in rows] == [1.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error_and_no_null(value: float, classifier: Callable[..., FineTune]) -> None:
    with pytest.raises(InternalError, match="not a number"):
        TextClassification().present(
            Prepared((), False),
            [np.array([value, 1.0], np.float32)],
            classifier().spec,
            ClassificationParameters(function_to_apply="none"),
        )
