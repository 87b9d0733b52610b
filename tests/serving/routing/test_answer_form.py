"""What two versions' callers would notice, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ken_core import DeltaFile
from ken_core.embedding import Dense, Embedding
from ken_core.manifest import Manifest
from serving.kinds import answer_form
from serving.routing.answer_form import AnswerForm
from tests.tiny_checkpoints import Deltas, Tiny


def classifier(*labels: str, scores: str = "softmax") -> AnswerForm:
    return AnswerForm("text-classification", tuple(sorted(labels)), scores)


def told(first: AnswerForm, second: AnswerForm) -> str:
    return first.difference(second, "the live version", "version 5f3a")


# Of a delta


@pytest.mark.parametrize(
    ("task", "form"),
    [
        ("spam", AnswerForm("text-classification", ("ham", "spam"), "softmax")),
        ("ranks", AnswerForm("text-classification", ("relevance",), "sigmoid")),
        ("tags", AnswerForm("token-classification", ("B-LOC", "B-PER", "I-PER", "O"))),
        ("answers", AnswerForm("question-answering")),
        ("vectors", AnswerForm("feature-extraction")),
        ("search", AnswerForm("sentence-embeddings", vectors="as wide as the model, not scaled")),
    ],
)
def test_a_deltas_form_is_read_from_its_manifest(
    task: str, form: AnswerForm, of_every_kind: dict[str, DeltaFile]
) -> None:
    assert answer_form(of_every_kind[task].manifest) == form


def test_a_head_that_no_kind_reads_has_a_form_too(tiny: Tiny) -> None:
    assert answer_form(tiny.delta(tiny.filling("form-filling", 81)).manifest) == AnswerForm("fill-mask")


@pytest.mark.parametrize(
    ("problem_type", "scores"),
    [
        (None, "softmax"),
        ("single_label_classification", "softmax"),
        ("multi_label_classification", "sigmoid"),
        ("regression", "none"),
    ],
)
def test_what_makes_scores_of_logits_is_part_of_the_form(problem_type: str | None, scores: str, deltas: Deltas) -> None:
    assert answer_form(configured(deltas, problem_type=problem_type)).scores == scores


def configured(deltas: Deltas, **config: object) -> Manifest:
    manifest = deltas.spam.manifest
    return manifest.model_copy(update={"config": {**manifest.config, **config}})


def test_labels_that_a_config_leaves_out_are_those_transformers_makes_up(deltas: Deltas) -> None:
    assert answer_form(configured(deltas, id2label=None)).labels == ("LABEL_0", "LABEL_1")


def test_the_order_of_labels_method_and_budget_are_no_part_of_it(
    deltas: Deltas, make: Callable[[Sequence[str], float], DeltaFile]
) -> None:
    assert answer_form(make(["spam", "ham"], 0.05).manifest) == answer_form(deltas.spam.manifest)


@pytest.fixture
def make(tiny: Tiny) -> Callable[[Sequence[str], float], DeltaFile]:
    return lambda labels, kept: tiny.delta(tiny.tuned("form-turned", labels, 82), kept)


# In words


def test_versions_of_one_form_differ_in_nothing() -> None:
    assert told(classifier("ham", "spam"), classifier("spam", "ham")) == ""


def test_labels_that_only_one_has_are_named_with_which() -> None:
    assert told(classifier("sport", "business", "art"), classifier("art", "rock", "pop")) == (
        "labels: only in the live version: 'business', 'sport'; only in version 5f3a: 'pop', 'rock'"
    )
    assert (
        told(classifier("ham", "spam"), classifier("ham", "spam", "other")) == "labels: only in version 5f3a: 'other'"
    )


def test_a_name_that_two_labels_have_counts_twice() -> None:
    assert told(classifier("a", "a", "b"), classifier("a", "b", "b")) == (
        "labels: only in the live version: 'a'; only in version 5f3a: 'b'"
    )


def test_long_lists_and_long_names_are_cut_and_what_controls_a_terminal_is_not_passed_on() -> None:
    many = classifier(*(f"label-{i:03}" for i in range(151)))
    assert told(classifier("ham"), many).endswith(
        "'label-000', 'label-001', 'label-002', 'label-003', 'label-004' and 146 more"
    )
    odd = told(classifier("ham"), classifier("x" * 10_000, "\x1b[2J\n"))
    assert "\x1b" not in odd
    assert "\n" not in odd
    assert len(odd) < 200


def test_another_kind_is_told_and_nothing_that_follows_from_it() -> None:
    assert told(classifier("ham", "spam"), AnswerForm("token-classification", ("O", "B-PER"))) == (
        "kind: text-classification in the live version, token-classification in version 5f3a"
    )


def test_a_version_for_another_base_is_told_before_all_else(deltas: Deltas) -> None:
    ours = deltas.spam.manifest
    theirs = deltas.emotion.manifest.model_copy(update={"base": ours.base.model_copy(update={"fingerprint": "f" * 64})})
    assert told(answer_form(ours), answer_form(theirs)) == (
        f"base: {ours.base.fingerprint[:40]} in the live version, {'f' * 40} in version 5f3a"
    )


def test_scores_and_lengths_of_vectors_are_told(of_every_kind: dict[str, DeltaFile]) -> None:
    assert told(classifier("ham", "spam"), classifier("ham", "spam", scores="sigmoid")) == (
        "scores: softmax in the live version, sigmoid in version 5f3a"
    )
    search = of_every_kind["search"].manifest
    projected = Dense(inputs=64, outputs=7, bias=False, activation="Tanh")
    ways: list[dict[str, object]] = [
        {"pooling": ("mean",)},
        {"pooling": ("mean",), "modules": ("normalize",)},
        {"pooling": ("cls", "max")},
        {"pooling": ("cls", "max"), "modules": (projected, "normalize")},
        {"pooling": ("mean",), "dimensions": 3},
    ]
    plain, *others = [answer_form(search.model_copy(update={"embedding": Embedding(**way)})) for way in ways]
    assert [told(plain, other) for other in others] == [
        f"vectors: as wide as the model, not scaled in the live version, {other} in version 5f3a"
        for other in (
            "as wide as the model, scaled to length 1",
            "2 times as wide, not scaled",
            "7 numbers, scaled to length 1",
            "3 numbers, not scaled",
        )
    ]
