"""Feature extraction: one vector a token, as Transformers' pipeline gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.utils.generic import ModelOutput

from ken_core.heads import Grafted
from ken_core.stand_in import Inputs
from serving.pipelines.base import Parameters, Pipeline, Prepared, Probe, Raw, TaskSpec, encode_whole, finite
from serving.pipelines.hidden_states import last_hidden_states
from serving.workers.steps import Steps


class FeatureExtraction:
    kind = head = "feature-extraction"
    encodes_by_tokenizer_alone = True
    input = str
    parameters = Parameters

    def probes(self, texts: Sequence[str]) -> list[Probe]:
        return [Probe(text) for text in texts]

    def prepare(self, inputs: Sequence[str], task: TaskSpec, parameters: Parameters) -> Steps[list[Prepared]]:
        return encode_whole(inputs, task, parameters)

    def run_head(self, model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
        """Last hidden states, shape (tokens, width) a row."""
        return last_hidden_states(model, output, inputs)

    def present(self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: Parameters) -> Any:
        return finite(raws[0]).tolist()


PIPELINE: Pipeline = FeatureExtraction()
