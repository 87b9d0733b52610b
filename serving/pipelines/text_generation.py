"""Text generation: texts continued by a causal language model.

A continuation lives over many steps, so `serving.generation` runs it and not the batches of rows. The rows of this
pipeline ask for one next token each: that is how a new delta is tried before anybody can ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field
from transformers.utils.generic import ModelOutput

from ken_core.heads import Grafted
from ken_core.stand_in import Inputs
from serving.pipelines.base import Parameters, Pipeline, Prepared, Probe, Raw, TaskSpec, encode_whole, finite
from serving.pipelines.sampling_parameters import SamplingParameters
from serving.workers.steps import Steps

TEXT_GENERATION = "text-generation"
USUAL_TOKENS = 256


class TextGenerationParameters(SamplingParameters, Parameters):
    """Under the names of Transformers' `generate`."""

    max_new_tokens: int | None = Field(
        None, ge=1, description=f"tokens to generate at most; by default {USUAL_TOKENS}, or as many as the model takes"
    )
    min_new_tokens: int = Field(0, ge=0, description="tokens before which nothing ends the text")
    stop: str | list[str] = Field([], description="a text or texts that end the continuation; no part of it")
    do_sample: bool | None = Field(
        None, description="false: always the likeliest token; by default as the task's generation_config.json says"
    )
    return_full_text: bool = Field(False, description="put the prompt before the text")


class TextGeneration:
    kind = head = TEXT_GENERATION
    encodes_by_tokenizer_alone = True
    input = str
    parameters = TextGenerationParameters

    def probes(self, texts: Sequence[str]) -> list[Probe]:
        return [Probe(text) for text in texts]

    def prepare(self, inputs: Sequence[str], task: TaskSpec, parameters: Parameters) -> Steps[list[Prepared]]:
        return encode_whole(inputs, task, parameters)

    def run_head(self, model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
        """Logits after the last token, shape (vocabulary,) a row."""
        ends = inputs["attention_mask"].sum(dim=1) - 1
        logits = model(output, inputs).logits
        return [row[end].float().cpu().numpy() for row, end in zip(logits, ends.tolist(), strict=True)]

    def present(
        self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: Parameters
    ) -> dict[str, Any]:
        return {"generated_text": task.encoder.text_of([int(np.argmax(finite(raws[0])))])}


PIPELINE: Pipeline = TextGeneration()
