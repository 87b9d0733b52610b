"""Zero-shot classification: labels named in the request, each judged by a model of natural language inference.

Every label becomes a hypothesis beside the text, and the logit of *entailment* says how far the text supports it.
Yin, Hay & Roth, "Benchmarking Zero-shot Text Classification" (EMNLP 2019), as Transformers' pipeline computes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator
from transformers import PretrainedConfig
from transformers.utils.generic import ModelOutput

from ken_core.heads import Grafted
from ken_core.stand_in import Inputs
from ken_core.tokenization import Part
from serving.errors import InvalidInputError, TooLargeError
from serving.pipelines.base import (
    Parameters,
    Pipeline,
    Prepared,
    Probe,
    Raw,
    TaskSpec,
    TokenBudget,
    encode_parts,
    finite,
    refuse_unfit,
)
from serving.pipelines.logits import classify, softmax
from serving.workers.steps import Steps

_MOST_LABELS = 256
_GAP = "{}"


class ZeroShotParameters(Parameters):
    candidate_labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = Field(
        max_length=_MOST_LABELS, description="what the text may be about"
    )
    hypothesis_template: str = Field("This example is {}.", description="a sentence with {} where a label goes")
    multi_label: bool = Field(False, description="judge each label by itself; else their scores add up to 1")

    @field_validator("hypothesis_template")
    @classmethod
    def _has_one_gap(cls, template: str) -> str:
        """One gap, filled by replacement: `str.format` would let a request read attributes, or ask for any width."""
        if template.count(_GAP) != 1 or set(template.replace(_GAP, "")) & {"{", "}"}:
            raise ValueError("expected {} once, where the label goes, and no other brace")
        return template

    def refuse_longer_than(self, characters: int) -> None:
        """Raises `TooLargeError` before hypotheses are made that are too long together; each holds the template."""
        found = len(self.hypothesis_template) * len(self.candidate_labels) + sum(map(len, self.candidate_labels))
        if found > characters:
            raise TooLargeError(
                f"with the template they have {found} characters, at most {characters} are allowed; "
                "send fewer or shorter labels, or a shorter template",
                at="candidate_labels",
            )

    def hypotheses(self) -> list[str]:
        return [self.hypothesis_template.replace(_GAP, label) for label in self.candidate_labels]


@dataclass(frozen=True)
class _Verdicts:
    """Which of a head's logits say what."""

    entailment: int
    contradiction: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> _Verdicts:
        labels: Mapping[Any, str] = config.id2label or {}
        found = [i for i, label in sorted(labels.items()) if label.lower().startswith("entail")]
        if not found or len(labels) < 2:
            raise InvalidInputError(
                f"kind 'zero-shot-classification' needs a task trained on natural language inference, with a label "
                f"'entailment' and another; this task's labels are {', '.join(map(repr, list(labels.values())[:8]))}"
            )
        entailment = found[0]
        return cls(entailment, len(labels) - 1 if entailment == 0 else 0)


class ZeroShotClassification:
    kind = "zero-shot-classification"
    head = "text-classification"
    encodes_by_tokenizer_alone = False  # refuses labels without entailment
    input = str
    parameters = ZeroShotParameters

    def probes(self, texts: Sequence[str]) -> list[Probe]:
        return [Probe(text, {"candidate_labels": list(texts[:2])}) for text in texts]

    def prepare(self, inputs: Sequence[str], task: TaskSpec, parameters: ZeroShotParameters) -> Steps[list[Prepared]]:
        _Verdicts.of(task.config)
        encoder, budget = task.encoder, TokenBudget()
        hypotheses = yield from _hypotheses(task, parameters)
        parts = yield from encode_parts(inputs, "inputs.{}", task)
        prepared = []
        for where, (text, part) in enumerate(zip(inputs, parts, strict=True)):
            yield len(hypotheses)
            rows = []
            for hypothesis in hypotheses:
                rows.append(encoder.pair_keeping_second(part, hypothesis))
                refuse_unfit(rows[-1], f"inputs.{where}", task, parameters)
                budget.spend(rows[-1])
            prepared.append(Prepared(rows, any(row.truncated for row in rows), text))
        return prepared

    def run_head(self, model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
        """Logits, shape (labels of the head,) a row."""
        return classify(model, output, inputs)

    def present(
        self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: ZeroShotParameters
    ) -> dict[str, Any]:
        logits, verdicts = finite(np.stack(raws)), _Verdicts.of(task.config)
        if parameters.multi_label or len(raws) == 1:
            scores = softmax(logits[:, [verdicts.contradiction, verdicts.entailment]])[:, 1]
        else:
            scores = softmax(logits[:, verdicts.entailment])
        order = np.argsort(-scores, kind="stable")
        return {
            "sequence": prepared.source,
            "labels": [parameters.candidate_labels[i] for i in order],
            "scores": scores[order].tolist(),
        }


PIPELINE: Pipeline = ZeroShotClassification()


def _hypotheses(task: TaskSpec, parameters: ZeroShotParameters) -> Steps[list[Part]]:
    """Raises `InvalidInputError` if a hypothesis is so long that the model could see nothing of a text beside it."""
    encoder = task.encoder
    parameters.refuse_longer_than(encoder.long_texts.most_characters)
    parts = yield from encode_parts(parameters.hypotheses(), "candidate_labels.{}", task)
    for where, part in enumerate(parts):
        if encoder.room_beside(part.whole) < 1:
            raise InvalidInputError(
                f"with its template it has {part.whole} tokens and leaves no room for a text "
                f"in the {encoder.max_length} the model takes; shorten it",
                at=f"candidate_labels.{where}",
            )
    return parts
