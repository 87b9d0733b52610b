"""A service answers every kind; what each kind answers is tested in `tests/serving/pipelines`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
import torch
from transformers import BertForSequenceClassification, pipeline

from ken_core import open_base, open_tuned
from serving.config import load_settings
from serving.errors import InternalError, InvalidInputError, UnsupportedKindError
from serving.local.task import LocalTask
from serving.pipelines import PIPELINES, default_kind, pipeline_for
from serving.replica.inference import Prediction
from serving.service import Service
from serving.store import Store
from tests.serving.pipelines.sameness import assert_same
from tests.tiny_architectures import ArchitectureBase, FineTune
from tests.tiny_checkpoints import TEXTS, WORDS, Tiny, scores, write_tokenizer

Predict = Callable[..., Prediction]

LONG = " ".join(WORDS)
HEADS = {
    "features": ("features", []),
    "inference": ("sequence", ["contradiction", "neutral", "entailment"]),
    "relevance": ("sequence", ["relevant"]),
    "tokens": ("tokens", ["O", "B-PER", "I-PER"]),
    "answers": ("answers", []),
}
QUESTIONS: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("features", "feature-extraction", TEXTS[0], {}),
    ("features", "sentence-embeddings", TEXTS[2], {"pooling": "cls"}),
    ("inference", "text-classification", TEXTS[0], {"top_k": 2}),
    ("inference", "text-classification", {"text": TEXTS[0], "text_pair": LONG}, {}),
    ("inference", "zero-shot-classification", TEXTS[1], {"candidate_labels": ["rain", "the city", "a film"]}),
    ("relevance", "rerank", {"query": TEXTS[0], "texts": [*TEXTS]}, {"top_n": 3}),
    ("tokens", "token-classification", TEXTS[4], {"aggregation_strategy": "first"}),
    ("tokens", "token-classification", LONG, {"aggregation_strategy": "simple", "stride": 9}),
    ("answers", "question-answering", {"question": TEXTS[0], "context": LONG}, {"top_k": 4}),
]
"""Task, kind, input, parameters."""


@pytest.fixture(scope="module")
def fine_tunes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FineTune]:
    base = ArchitectureBase("bert", tmp_path_factory.mktemp("kinds"))
    return {name: base.fine_tune(name, head, labels) for name, (head, labels) in HEADS.items()}


@pytest.fixture(scope="module")
def predict(
    fine_tunes: dict[str, FineTune], embedded_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Predict]:
    """``predict(task, kind, inputs, **parameters)`` asks one service that has a task of every head."""
    namespace = f"kinds-{uuid.uuid4().hex[:12]}"
    store = Store(embedded_url, namespace)
    for name, fine_tune in fine_tunes.items():
        store.tasks.publish(name, fine_tune.file)
    folder = fine_tunes["features"].base.path
    told = {"base": str(folder), "data_dir": tmp_path_factory.mktemp("service"), "namespace": namespace, "threads": 1}
    service = Service(load_settings(**told), embedded_url)
    service.start()

    async def many(questions: list[tuple[str, str | None, list[Any], dict[str, Any]]]) -> list[Prediction]:
        asked = [
            service.predict(service.table.resolve(task), inputs, parameters, 60, kind)
            for task, kind, inputs, parameters in questions
        ]
        return await asyncio.gather(*asked)

    yield lambda questions: asyncio.run(many(questions))
    service.stop()


def expected(fine_tunes: dict[str, FineTune], task: str, kind: str, given: Any, parameters: dict[str, Any]) -> Any:
    return fine_tunes[task].ask(kind, [given], **parameters)[0]


def test_every_kind_is_asked_here() -> None:
    """But for texts, which are not answered in batches: `tests/serving/generation`."""
    assert {kind for _, kind, _, _ in QUESTIONS} == set(PIPELINES) - {"text-generation"}


def test_kinds_asked_at_once_are_answered_as_each_by_itself(predict: Predict, fine_tunes: dict[str, FineTune]) -> None:
    """Rows of many inputs and requests share batches, in whatever order they come."""
    asked = [(task, kind, [given, given], parameters) for task, kind, given, parameters in QUESTIONS * 4]
    for answer, question in zip(predict(asked), QUESTIONS * 4, strict=True):
        alone = expected(fine_tunes, *question)
        assert answer.kind == question[1]
        assert_same(orjson.loads(orjson.dumps(answer.outputs)), [alone, alone])


@pytest.mark.parametrize("task", sorted(HEADS))
def test_a_task_in_this_process_answers_as_the_service_does(
    task: str, predict: Predict, fine_tunes: dict[str, FineTune]
) -> None:
    """From its delta, and from the folder that the delta makes."""
    of = fine_tunes[task]
    local = LocalTask.of_delta(open_base(str(of.base.path)), of.file), LocalTask.of_folder(open_tuned(str(of.applied)))
    for _, kind, given, parameters in (question for question in QUESTIONS if question[0] == task):
        (served,) = predict([(task, kind, [given, given], parameters)])
        for one in local:
            found = one.answer([given, given], parameters, kind)
            assert_same(orjson.loads(orjson.dumps(found.outputs)), served.outputs)
            assert found.truncated == served.truncated
    assert local[0].digest == of.file.digest


@pytest.mark.parametrize(
    ("task", "kind"),
    [("features", "feature-extraction"), ("inference", "text-classification"), ("tokens", "token-classification")],
)
def test_a_task_answers_the_kind_of_its_head_unless_asked_for_another(task: str, kind: str, predict: Predict) -> None:
    (answer,) = predict([(task, None, ["rain"], {})])
    assert answer.kind == kind


def test_inputs_that_were_cut_are_named(predict: Predict) -> None:
    asked = [
        ("inference", "text-classification", ["rain", LONG], {}),
        ("inference", "zero-shot-classification", ["rain", LONG], {"candidate_labels": ["rain", "sun"]}),
        ("relevance", "rerank", [{"query": "rain", "texts": ["sun"]}, {"query": "rain", "texts": ["sun", LONG]}], {}),
        ("tokens", "token-classification", ["rain", LONG], {}),
        ("features", "sentence-embeddings", ["rain", LONG], {}),
    ]
    whole = [
        ("tokens", "token-classification", ["rain", LONG], {"aggregation_strategy": "simple", "stride": 9}),
        ("answers", "question-answering", [{"question": "why?", "context": LONG}], {}),
    ]
    assert [answer.truncated for answer in predict(asked)] == [[1]] * len(asked)
    assert [answer.truncated for answer in predict(whole)] == [[], []]


# Which kinds there are


@pytest.mark.parametrize("head", sorted({p.head for p in PIPELINES.values()}))
def test_every_head_that_is_served_has_a_kind_of_its_own(head: str) -> None:
    assert default_kind(head, False) == head
    assert pipeline_for(head, head).head == head


@pytest.mark.parametrize("head", ["fill-mask", "BertForNextSentencePrediction"])
def test_a_head_that_no_kind_reads_is_refused_with_those_that_are(head: str) -> None:
    served = "feature-extraction, question-answering, text-classification, text-generation, token-classification"
    with pytest.raises(UnsupportedKindError, match=rf"'{head}' are not served; served are {served}"):
        default_kind(head, False)


def test_a_kind_that_a_head_cannot_answer_is_refused_with_those_it_can() -> None:
    with pytest.raises(InvalidInputError, match="answers rerank, text-classification, zero-shot-classification"):
        pipeline_for("question-answering", "text-classification")


# Fine-tunes that change more than weights


@pytest.fixture
def ask(make_service: Callable[..., Service], publish: Callable[..., None]) -> Callable[..., list[Any]]:
    """Publish a fine-tune's delta and ask it for its own kind."""
    service = make_service()

    def run(file: Any, inputs: list[Any]) -> list[Any]:
        publish("task", file)
        return asyncio.run(service.predict(file.digest, inputs, {}, 20)).outputs

    return run


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
        assert scores(found) == pytest.approx(scores(reference(text)[0]), abs=1e-5)


def test_logits_that_overflow_are_an_error_of_the_server_and_no_null(tiny: Tiny, ask: Callable[..., list[Any]]) -> None:
    folder = tiny.tuned("overflowing", ["good", "bad"], seed=41)
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
    model.save_pretrained(folder)
    with pytest.raises(InternalError, match="not a number"):
        ask(tiny.delta(folder), ["rain"])
