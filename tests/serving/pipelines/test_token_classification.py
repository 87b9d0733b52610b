"""Token classification finds what Transformers' pipeline finds on the applied folder, and where."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from sameness import assert_same

from serving.errors import InvalidInputError, TooLargeError
from tests.tiny_architectures import TOKENIZERS, FineTune
from tests.tiny_checkpoints import TEXTS, WORDS

KIND = "token-classification"
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "date"]
STRATEGIES = ["none", "simple", "first", "average", "max"]
LONG = " ".join([*WORDS[:60], "unknownword", "MÜNCHEN's", "東京", *WORDS[30:80]]).replace(" ##", "")
INPUTS = [*TEXTS, "unknownword jumped over MÜNCHEN's 12 rivers, in 東京 and Rain🙂!", "  two  spaces ", "", LONG]


@pytest.fixture(scope="module")
def recogniser(make_fine_tune_of: Callable[..., FineTune]) -> Callable[..., FineTune]:
    return lambda architecture="bert": make_fine_tune_of(architecture, "recogniser", "tokens", LABELS)


@pytest.fixture(scope="module")
def expected(dedicated_pipeline: Callable[..., Any]) -> Callable[..., list[Any]]:
    def ask(fine_tune: FineTune, texts: list[str], **options: Any) -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that words are found by a rule of thumb
            found = [dedicated_pipeline(KIND, fine_tune)(text, **options) for text in texts]
        return [[_plain(entity) for entity in entities] for entities in found]

    return ask


def _plain(entity: dict[str, Any]) -> dict[str, Any]:
    return {**entity, "score": float(entity["score"])}


def _texts(architecture: str) -> list[str]:
    """Decoders' tokenizers have no token for an empty text."""
    return [text for text in INPUTS if text or TOKENIZERS[architecture] != "bytes alone"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_entities_are_those_of_transformers(
    architecture: str, strategy: str, recogniser: Callable[..., FineTune], expected: Callable[..., list[Any]]
) -> None:
    fine_tune, texts = recogniser(architecture), _texts(architecture)
    found = fine_tune.ask(KIND, texts, aggregation_strategy=strategy)
    assert_same(found, expected(fine_tune, texts, aggregation_strategy=strategy))
    key = "entity" if strategy == "none" else "entity_group"
    assert len({entity[key] for entities in found for entity in entities}) > 1


@pytest.mark.parametrize("stride", [0, 7, 40])
@pytest.mark.parametrize("strategy", ["simple", "average"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "deberta-v2", "qwen2"])
def test_all_of_a_long_text_is_read_in_windows_as_transformers_reads_it(
    architecture: str,
    strategy: str,
    stride: int,
    recogniser: Callable[..., FineTune],
    expected: Callable[..., list[Any]],
) -> None:
    fine_tune, texts = recogniser(architecture), [LONG, TEXTS[0], LONG[7:]]
    options = {"aggregation_strategy": strategy, "stride": stride}
    found = fine_tune.ask(KIND, texts, **options)
    assert_same(found, expected(fine_tune, texts, **options))
    assert max(entity["end"] for entity in found[0]) > 0.9 * len(LONG)


@pytest.mark.parametrize(("strategy", "ignored"), [("none", ["B-PER", "date"]), ("simple", ["PER"]), ("max", [])])
def test_labels_to_leave_out_are_left_out_as_transformers_leaves_them(
    strategy: str, ignored: list[str], recogniser: Callable[..., FineTune], expected: Callable[..., list[Any]]
) -> None:
    fine_tune = recogniser("distilbert")
    options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    found = fine_tune.ask(KIND, INPUTS, **options)
    assert_same(found, expected(fine_tune, INPUTS, **options))
    assert found != fine_tune.ask(KIND, INPUTS, aggregation_strategy=strategy)


def test_places_are_characters_of_the_text(recogniser: Callable[..., FineTune]) -> None:
    text = "🙂 unknownword in MÜNCHEN"
    (entities,) = recogniser().ask(KIND, [text], aggregation_strategy="first", ignore_labels=[])
    assert [text[e["start"] : e["end"]].lower() for e in entities] == [
        e["word"].replace("munchen", "münchen") for e in entities
    ]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2"])
def test_entities_do_not_depend_on_who_else_asks(architecture: str, recogniser: Callable[..., FineTune]) -> None:
    fine_tune = recogniser(architecture)
    together = fine_tune.ask(KIND, INPUTS, aggregation_strategy="simple", stride=3)
    alone = [fine_tune.ask(KIND, [text], aggregation_strategy="simple", stride=3)[0] for text in INPUTS]
    assert_same(together, alone)


# Refusals


def test_a_text_that_would_be_cut_is_refused_by_its_place_where_that_is_not_allowed(
    recogniser: Callable[..., FineTune],
) -> None:
    with pytest.raises(InvalidInputError, match=r"^inputs\.1: longer than the 64 tokens"):
        recogniser().ask(KIND, ["rain", LONG], truncation=False)
    recogniser().ask(KIND, ["rain", LONG], truncation=False, aggregation_strategy="simple", stride=3)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"aggregation_strategy": "best"}, "aggregation_strategy"),
        ({"stride": 3}, "aggregation_strategy"),
        ({"stride": -1, "aggregation_strategy": "simple"}, "stride"),
        ({"stride": 62, "aggregation_strategy": "simple"}, "stride: found 62, but a row takes 62"),
        ({"ignore_labels": "O"}, "ignore_labels"),
        ({"top_k": 1}, "top_k"),
    ],
)
def test_parameters_of_another_form_are_refused_by_name(
    parameters: dict[str, Any], named: str, recogniser: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        recogniser().ask(KIND, ["rain"], **parameters)


def test_a_text_without_a_token_is_refused_where_nothing_else_is_in_its_row(
    recogniser: Callable[..., FineTune],
) -> None:
    for parameters in ({}, {"aggregation_strategy": "simple", "stride": 3}):
        with pytest.raises(InvalidInputError, match=r"^inputs\.1: .* no token"):
            recogniser("qwen2").ask(KIND, ["rain", ""], **parameters)


def test_a_long_text_in_windows_that_hardly_advance_is_refused_before_they_are_made(
    recogniser: Callable[..., FineTune],
) -> None:
    with pytest.raises(TooLargeError, match="rows of more than"):
        recogniser().ask(KIND, ["rain " * 20_000], aggregation_strategy="simple", stride=61)
