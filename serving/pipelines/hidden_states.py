"""What kinds without a head share: the backbone's last hidden states."""

from __future__ import annotations

from transformers.utils.generic import ModelOutput

from ken_core.heads import Grafted
from ken_core.stand_in import Inputs
from serving.pipelines.base import Raw


def last_hidden_states(model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
    """Shape (tokens, width) a row, padding cut off."""
    states = model(output, inputs).last_hidden_state.float().cpu().numpy()
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    return [state[:length] for state, length in zip(states, lengths, strict=True)]
