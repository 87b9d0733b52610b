"""Token classification: what is recognised where in a text, as Transformers' pipeline finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator
from transformers.utils.generic import ModelOutput

from ken_core.heads import Grafted
from ken_core.stand_in import Inputs
from ken_core.tokenization import Window
from serving.errors import InvalidInputError
from serving.pipelines.base import (
    AT_ONCE,
    Parameters,
    Pipeline,
    Prepared,
    Probe,
    Raw,
    TaskSpec,
    TokenBudget,
    encode_all,
    finite,
    refuse_unfit,
    refusing_too_long,
)
from serving.pipelines.entities import Entity, Strategy, entities_of, without_overlaps
from serving.pipelines.logits import classify_tokens, softmax
from serving.workers.steps import Steps, together


class TokenParameters(Parameters):
    aggregation_strategy: Strategy = Field(
        "none",
        description="none: every token; simple: neighbours of one tag; first, average, max: words, by the scores of "
        "their first token, of all on average, or of the surest, and neighbours of one tag",
    )
    ignore_labels: list[str] = Field(["O"], description="labels (of entities: without B- and I-) to leave out")
    stride: int | None = Field(
        None, ge=0, description="read all of a long text, in windows that overlap by so many tokens; needs aggregation"
    )

    @model_validator(mode="after")
    def _tokens_are_not_listed_twice(self) -> TokenParameters:
        if self.stride is not None and self.aggregation_strategy == "none":
            raise ValueError("stride needs an aggregation_strategy other than 'none'")
        return self


@dataclass(frozen=True)
class _Source:
    text: str
    windows: Sequence[Window]


class TokenClassification:
    kind = head = "token-classification"
    encodes_by_tokenizer_alone = True
    input = str
    parameters = TokenParameters

    def probes(self, texts: Sequence[str]) -> list[Probe]:
        ways: list[dict[str, Any]] = [{"aggregation_strategy": how, "ignore_labels": []} for how in ("none", "first")]
        return [Probe(text, parameters) for parameters in ways for text in texts]

    def prepare(self, inputs: Sequence[str], task: TaskSpec, parameters: TokenParameters) -> Steps[list[Prepared]]:
        if parameters.stride is None:
            windows = yield from _kept_of(inputs, task)
        else:
            windows = yield from _all_of(inputs, task, parameters.stride)
        prepared = []
        for where, (text, ours) in enumerate(zip(inputs, windows, strict=True)):
            rows = [window.row for window in ours]
            for row in rows:
                refuse_unfit(row, f"inputs.{where}", task, parameters)
            prepared.append(Prepared(rows, any(row.truncated for row in rows), _Source(text, ours)))
        return prepared

    def run_head(self, model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
        """Logits, shape (tokens, labels) a row."""
        return classify_tokens(model, output, inputs)

    def present(
        self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: TokenParameters
    ) -> list[dict[str, Any]]:
        source: _Source = prepared.source
        strategy, ignored = parameters.aggregation_strategy, set(parameters.ignore_labels)
        labels: Mapping[Any, str] = task.config.id2label or {}
        entities: list[Entity] = []
        for window, raw in zip(source.windows, raws, strict=True):
            scores = softmax(finite(raw)[window.at : window.at + len(window.offsets)])
            entities += entities_of(window, scores, source.text, task.encoder, labels, strategy, ignored)
        if len(raws) > 1:
            entities = without_overlaps(entities)
        return [_plain(entity) for entity in entities]


PIPELINE: Pipeline = TokenClassification()


def _kept_of(inputs: Sequence[str], task: TaskSpec) -> Steps[list[list[Window]]]:
    found: list[list[Window]] = []
    for some in together(list(map(len, inputs)), AT_ONCE):
        texts = inputs[some.start : some.stop]
        yield sum(map(len, texts))
        with refusing_too_long(f"inputs.{some.start}"):
            found += [[window] for window in task.encoder.located(texts)]
    return found


def _all_of(inputs: Sequence[str], task: TaskSpec, stride: int) -> Steps[list[list[Window]]]:
    if stride >= task.encoder.room_alone:
        raise InvalidInputError(
            f"found {stride}, but a row takes {task.encoder.room_alone} tokens of a text; overlap by less", at="stride"
        )
    budget = TokenBudget()
    found: list[list[Window]] = []
    for where, text in enumerate(inputs):
        tokens = yield from encode_all(text, f"inputs.{where}", task, budget)
        found.append([])
        for window in task.encoder.windows(tokens, stride):
            budget.spend(window.row)
            found[-1].append(window)
    return found


def _plain(entity: Entity) -> dict[str, Any]:
    place = {"word": entity.word, "start": entity.start, "end": entity.end}
    if entity.index is None:
        return {"entity_group": entity.label, "score": entity.score, **place}
    return {"entity": entity.label, "score": entity.score, "index": entity.index, **place}
