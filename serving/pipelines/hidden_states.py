"""What kinds without a head share: the backbone's last hidden states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from serving.pipelines.base import Raw


def last_hidden_states(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
    """Shape (tokens, width) a row, padding cut off."""
    states = model(**batch).last_hidden_state.float().cpu().numpy()
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return [state[:length] for state, length in zip(states, lengths, strict=True)]
