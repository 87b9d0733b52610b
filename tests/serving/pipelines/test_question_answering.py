"""Question answering finds what a plain search over the applied model's own logits finds.

Transformers 5 has no pipeline for it any more. So the yardstick is written out here, by the definition of the one that
release 4 had: every span of every window, in float64, from the dedicated model and `AutoTokenizer` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sameness import assert_same
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from serving.errors import InternalError, InvalidInputError, TooLargeError
from serving.pipelines.base import Prepared
from serving.pipelines.question_answering import QuestionAnswering
from serving.workers.steps import finish
from tests.tiny_architectures import TOKENIZERS, FineTune
from tests.tiny_checkpoints import TEXTS, WORDS

KIND = "question-answering"
SHORT = "The unknownword jumped over MÜNCHEN's 12 rivers, in 東京. Rain 🙂 and the rain!"
LONG = " ".join([*WORDS[:60], "unknownword", "MÜNCHEN's", "東京", *WORDS[30:80]]).replace(" ##", "")
INPUTS = [{"question": q, "context": c} for q, c in [(TEXTS[0], SHORT), (TEXTS[3], LONG), ("why?", TEXTS[4])]]


@pytest.fixture(scope="module")
def answerer(make_fine_tune_of: Callable[..., FineTune]) -> Callable[..., FineTune]:
    return lambda architecture="bert": make_fine_tune_of(architecture, "answerer", "answers")


def expected(
    fine_tune: FineTune,
    asked: dict[str, str],
    top_k: int = 1,
    doc_stride: int = 32,
    max_answer_len: int = 15,
    max_seq_len: int = 64,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
) -> list[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(fine_tune.applied)
    model = AutoModelForQuestionAnswering.from_pretrained(fine_tune.applied).eval()
    question_first = tokenizer.padding_side == "right"
    texts = (asked["question"], asked["context"]) if question_first else (asked["context"], asked["question"])
    rows = tokenizer(
        *texts,
        truncation="only_second" if question_first else "only_first",
        max_length=max_seq_len,
        stride=doc_stride,
        return_overflowing_tokens=True,
    )
    answers: list[dict[str, Any]] = []
    none = np.inf
    for row in rows.encodings:
        ids = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
        named = {n: torch.tensor([ids[n]]) for n in tokenizer.model_input_names}
        with torch.inference_mode():
            output = model(**named)
        context = [i for i, text in enumerate(row.sequence_ids) if text == (1 if question_first else 0)]
        competing = context + [i for i, token in enumerate(row.ids) if token == tokenizer.cls_token_id]
        starts, ends = (softmax_over(competing, logits[0]) for logits in (output.start_logits, output.end_logits))
        none = min(none, starts.get(0, 0.0) * ends.get(0, 0.0))
        spans = [(starts[s] * ends[e], s, e) for s in context for e in context if s <= e < s + max_answer_len]
        for score, first, last in sorted(spans, reverse=True)[: 2 * top_k + 10 if align_to_words else top_k]:
            begin, end = row.offsets[first][0], row.offsets[last][1]
            if align_to_words:
                side = 1 if question_first else 0
                begin = row.word_to_chars(row.token_to_word(first), side)[0]
                end = row.word_to_chars(row.token_to_word(last), side)[1]
            text = asked["context"][begin:end]
            same = [answer for answer in answers if answer["answer"].lower() == text.lower()]
            if same:
                same[0]["score"] += score
            else:
                answers.append({"score": score, "start": begin, "end": end, "answer": text})
    if handle_impossible_answer:
        answers.append({"score": none, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: -answer["score"])[:top_k]


def softmax_over(places: list[int], logits: torch.Tensor) -> dict[int, float]:
    values = np.array([float(logits[i]) for i in places])
    exponents = np.exp(values - values.max())
    return dict(zip(places, (exponents / exponents.sum()).tolist(), strict=True))


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_answers_are_those_of_the_applied_model(architecture: str, answerer: Callable[..., FineTune]) -> None:
    fine_tune = answerer(architecture)
    found = fine_tune.ask(KIND, INPUTS, top_k=5)
    assert_same(found, [expected(fine_tune, asked, top_k=5) for asked in INPUTS])
    best = fine_tune.ask(KIND, INPUTS)
    assert_same(best, [answers[0] for answers in [expected(fine_tune, asked) for asked in INPUTS]])
    assert all(asked["context"][a["start"] : a["end"]] == a["answer"] for asked, a in zip(INPUTS, best, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"align_to_words": False},
        {"max_answer_len": 1},
        {"max_answer_len": 200},
        {"doc_stride": 0},
        {"doc_stride": 12, "max_seq_len": 48},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2", "qwen2"])
def test_parameters_change_answers_as_they_should(
    architecture: str, options: dict[str, Any], answerer: Callable[..., FineTune]
) -> None:
    fine_tune = answerer(architecture)
    found = fine_tune.ask(KIND, INPUTS, top_k=20, **options)
    assert_same(found, [expected(fine_tune, asked, top_k=20, **options) for asked in INPUTS])


def test_the_empty_answer_competes_with_the_least_of_its_probabilities_in_all_windows(
    answerer: Callable[..., FineTune],
) -> None:
    kind, spec = QuestionAnswering(), answerer().spec
    parameters = kind.parameters(handle_impossible_answer=True, top_k=2)
    (prepared,) = finish(kind.prepare([kind.input.model_validate(INPUTS[1])], spec, parameters))
    raws = [np.zeros((2, len(row)), np.float32) for row in prepared.rows]
    others = [len(window.offsets) for window in prepared.source.windows]
    for i, raw in enumerate(raws):
        raw[:, 0] = 7.0 if i == 1 else 9.0
    best, _ = kind.present(prepared, raws, spec, parameters)
    least = (np.exp(7.0) / (np.exp(7.0) + others[1])) ** 2
    assert_same(best, {"score": float(least), "start": 0, "end": 0, "answer": ""})


def test_all_of_a_long_context_is_searched(answerer: Callable[..., FineTune]) -> None:
    (found,) = answerer().ask(KIND, [INPUTS[1]], top_k=100)
    assert min(answer["start"] for answer in found) < 0.3 * len(LONG)
    assert max(answer["end"] for answer in found) > 0.7 * len(LONG)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_answers_do_not_depend_on_who_else_asks(architecture: str, answerer: Callable[..., FineTune]) -> None:
    fine_tune = answerer(architecture)
    together = fine_tune.ask(KIND, INPUTS, top_k=3)
    assert_same(together, [fine_tune.ask(KIND, [asked], top_k=3)[0] for asked in INPUTS])


def test_a_question_longer_than_allowed_is_cut_or_refused_by_its_place(answerer: Callable[..., FineTune]) -> None:
    fine_tune = answerer()
    long, short = ({"question": "why not " * n, "context": SHORT} for n in (20, 5))
    assert_same(fine_tune.ask(KIND, [long], max_question_len=10), fine_tune.ask(KIND, [short]))
    with pytest.raises(InvalidInputError, match=r"^inputs\.1\.question: longer than 10 tokens"):
        fine_tune.ask(KIND, [INPUTS[0] | {"question": "why"}, long], max_question_len=10, truncation=False)


# Refusals


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("rain", r"^inputs\.1"),
        ({"question": "why?"}, r"^inputs\.1.*context"),
        ({"question": "", "context": SHORT}, r"^inputs\.1.*question"),
        ({"question": "why?", "context": ""}, r"^inputs\.1.*context"),
        ({"question": "why?", "context": " \n "}, r"^inputs\.1\.context: .* no token"),
        ({"question": "why?", "context": SHORT, "title": "x"}, r"^inputs\.1.*title"),
        ({"question": "why not " * 40, "context": SHORT}, r"^inputs\.1\.question: .* leave no room"),
    ],
    ids=["text", "no-context", "empty-question", "empty-context", "blank-context", "more", "long-question"],
)
def test_inputs_of_another_form_are_refused_by_their_place(
    asked: Any, named: str, answerer: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        answerer().ask(KIND, [INPUTS[0], asked])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": 101}, "top_k"),
        ({"max_answer_len": 0}, "max_answer_len"),
        ({"max_question_len": 0}, "max_question_len"),
        ({"max_seq_len": 65}, "max_seq_len: found 65, but the model takes 64"),
        ({"max_seq_len": 8}, r"leave no room for the context in a row of 8"),
        ({"doc_stride": 64}, "doc_stride: found 64"),
        ({"align_to_words": "perhaps"}, "align_to_words"),
        ({"stride": 1}, "stride"),
    ],
)
def test_parameters_of_another_form_are_refused_by_name(
    parameters: dict[str, Any], named: str, answerer: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        answerer().ask(KIND, INPUTS[:1], **parameters)


def test_a_long_context_in_windows_that_hardly_advance_is_refused_before_they_are_made(
    answerer: Callable[..., FineTune],
) -> None:
    asked = {"question": "why?", "context": "rain " * 20_000}
    with pytest.raises(TooLargeError, match="rows of more than"):
        answerer().ask(KIND, [asked], doc_stride=58)


# Numbers


@pytest.fixture
def prepared(answerer: Callable[..., FineTune]) -> Prepared:
    checked = QuestionAnswering.input.model_validate(INPUTS[0])
    return finish(QuestionAnswering().prepare([checked], answerer().spec, QuestionAnswering.parameters()))[0]


def present(prepared: Prepared, logits: np.ndarray, fine_tune: FineTune) -> dict[str, Any]:
    kind = QuestionAnswering()
    answer: dict[str, Any] = kind.present(prepared, [logits], fine_tune.spec, kind.parameters())
    return answer


def test_logits_that_are_no_numbers_are_an_error_and_no_null(
    prepared: Prepared, answerer: Callable[..., FineTune]
) -> None:
    logits = np.zeros((2, len(prepared.rows[0])), np.float32)
    logits[0, 3] = np.nan
    with pytest.raises(InternalError, match="not a number"):
        present(prepared, logits, answerer())


def test_where_no_span_has_any_probability_the_answer_is_empty(
    prepared: Prepared, answerer: Callable[..., FineTune]
) -> None:
    logits = np.full((2, len(prepared.rows[0])), -1e9, np.float32)
    logits[:, 0] = 1e9
    assert present(prepared, logits, answerer()) == {"score": 0.0, "start": 0, "end": 0, "answer": ""}
