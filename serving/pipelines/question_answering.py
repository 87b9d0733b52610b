"""Question answering: the part of a context that answers a question.

Contexts longer than a row become several, which overlap. Parameters, their defaults and the choice of answers are those
of Transformers' pipeline up to its release 4, the last that had one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from transformers.utils.generic import ModelOutput

from ken_core.heads import Grafted
from ken_core.stand_in import Inputs
from ken_core.tokenization import Part, Window
from serving.errors import InvalidInputError
from serving.incoming import Incoming
from serving.pipelines.answer_spans import Answer, Probabilities, best_answers, merged
from serving.pipelines.base import (
    Parameters,
    Pipeline,
    Prepared,
    Probe,
    Raw,
    TaskSpec,
    TokenBudget,
    encode_all,
    encode_parts,
    finite,
)
from serving.workers.steps import Steps

_ROW = 384
_STRIDE = 128


class Question(Incoming):
    """A question, and the text that its answer is looked for in."""

    question: str = Field(min_length=1)
    context: str = Field(min_length=1)


class AnswerParameters(Parameters):
    truncation: bool = Field(True, description="cut questions to max_question_len; false refuses longer ones")
    top_k: int = Field(1, ge=1, le=100, description="the k best answers, as a list if more than 1 is asked for")
    doc_stride: int | None = Field(None, ge=0, description="tokens by which windows of a long context overlap")
    max_answer_len: int = Field(15, ge=1, le=256, description="most tokens of an answer")
    max_question_len: int = Field(64, ge=1, description="most tokens of a question")
    max_seq_len: int | None = Field(None, ge=1, description=f"tokens of a row; the model's length, at most {_ROW}")
    handle_impossible_answer: bool = Field(False, description="let the empty answer compete")
    align_to_words: bool = Field(True, description="answer with whole words where the tokenizer knows words")


@dataclass(frozen=True)
class _Source:
    context: str
    windows: Sequence[Window]


class QuestionAnswering:
    kind = head = "question-answering"
    encodes_by_tokenizer_alone = True
    input = Question
    parameters = AnswerParameters

    def probes(self, texts: Sequence[str]) -> list[Probe]:
        return [Probe({"question": texts[i - 1], "context": text}) for i, text in enumerate(texts)]

    def prepare(
        self, inputs: Sequence[Question], task: TaskSpec, parameters: AnswerParameters
    ) -> Steps[list[Prepared]]:
        questions = yield from encode_parts([one.question for one in inputs], "inputs.{}.question", task)
        budget = TokenBudget()
        prepared = []
        for where, (one, question) in enumerate(zip(inputs, questions, strict=True)):
            truncated = question.whole > parameters.max_question_len
            if truncated and not parameters.truncation:
                raise InvalidInputError(
                    f"longer than {parameters.max_question_len} tokens; shorten it, raise max_question_len, or allow "
                    "truncation",
                    at=f"inputs.{where}.question",
                )
            ids, room, stride = _beside(question, f"inputs.{where}", task, parameters)
            context = yield from encode_all(one.context, f"inputs.{where}.context", task, budget)
            windows = []
            for window in task.encoder.windows_beside(ids, context, room, stride):
                budget.spend(window.row)
                windows.append(window)
            if not windows[0].offsets:
                raise InvalidInputError(
                    "the tokenizer finds no token in it; send a text that has one", at=f"inputs.{where}.context"
                )
            prepared.append(Prepared([w.row for w in windows], truncated, _Source(one.context, windows)))
        return prepared

    def run_head(self, model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
        """Logits of where the answer begins and where it ends, shape (2, tokens) a row."""
        found = model(output, inputs)
        both = torch.stack((found.start_logits, found.end_logits), dim=1).float().cpu().numpy()
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        return [logits[:, :length] for logits, length in zip(both, lengths, strict=True)]

    def present(self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: AnswerParameters) -> Any:
        source: _Source = prepared.source
        looked_at = 2 * parameters.top_k + 10 if parameters.align_to_words else parameters.top_k
        none, answers = 1.0, []
        for window, raw in zip(source.windows, raws, strict=True):
            found = Probabilities.of(window, finite(raw), task.encoder.cls_id)
            none = min(none, found.none)
            answers += best_answers(window, found, looked_at, parameters.max_answer_len, parameters.align_to_words)
        answers = merged(answers, source.context) or [Answer(0.0, 0, 0)]
        if parameters.handle_impossible_answer:
            answers = sorted([*answers, Answer(none, 0, 0)], key=lambda answer: -answer.score)
        plain = [_plain(answer, source.context) for answer in answers[: parameters.top_k]]
        return plain[0] if parameters.top_k == 1 else plain


PIPELINE: Pipeline = QuestionAnswering()


def _beside(question: Part, where: str, task: TaskSpec, parameters: AnswerParameters) -> tuple[Sequence[int], int, int]:
    """The question's token ids; how many tokens of the context a row has beside them; by how many rows overlap."""
    encoder = task.encoder
    length = parameters.max_seq_len or min(encoder.max_length, _ROW)
    if length > encoder.max_length:
        raise InvalidInputError(f"found {length}, but the model takes {encoder.max_length} tokens", at="max_seq_len")
    ids = encoder.cut(question.ids, parameters.max_question_len)
    room = encoder.room_beside(len(ids), length)
    if room < 1:
        raise InvalidInputError(
            f"its {len(ids)} tokens leave no room for the context in a row of {length}; shorten it, "
            "lower max_question_len, or raise max_seq_len",
            at=f"{where}.question",
        )
    stride = parameters.doc_stride
    if stride is None:
        stride = min(length // 2, _STRIDE, room - 1)
    elif stride >= room:
        raise InvalidInputError(
            f"found {stride}, but beside {where}.question a row of {length} takes {room} tokens of the "
            "context; overlap by less",
            at="doc_stride",
        )
    return ids, room, stride


def _plain(answer: Answer, context: str) -> dict[str, Any]:
    text = context[answer.start : answer.end]
    return {"score": answer.score, "start": answer.start, "end": answer.end, "answer": text}
