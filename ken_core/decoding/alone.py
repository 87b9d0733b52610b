"""Sequences one by one, with Transformers' own cache, for backbones whose attention cannot be packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.utils.generic import ModelOutput

from ken_core.decoding.decoder import Chunk


class OwnCache:
    """The cache of one sequence."""

    def __init__(self, cache: DynamicCache) -> None:
        self.cache = cache
        self.length = 0


class AloneDecoder:
    """Decodes the chunks of a step one after the other, as `generate` does with a batch of one.

    Args:
        backbone: with attention layers alone.
        token_nbytes: bytes that a token's keys and values take.
    """

    packs = False
    block = 1

    def __init__(self, backbone: PreTrainedModel, token_nbytes: int = 0) -> None:
        self._backbone = backbone
        self.token_nbytes = token_nbytes

    def start(self) -> OwnCache:
        return OwnCache(DynamicCache(config=self._backbone.config))

    def step(self, chunks: Sequence[Chunk[OwnCache]]) -> ModelOutput:
        outputs = [self.run(chunk) for chunk in chunks]
        return type(outputs[0])(last_hidden_state=torch.cat([output[0][:, -1:] for output in outputs], dim=1))

    def run(self, chunk: Chunk[OwnCache]) -> ModelOutput:
        """The output for all tokens of one chunk, (1, tokens, width)."""
        ids = torch.tensor([list(chunk.ids)], device=self._backbone.device)
        mask = ids.new_ones((1, chunk.past.length + len(chunk.ids)))
        output: ModelOutput = self._backbone(
            input_ids=ids, attention_mask=mask, past_key_values=chunk.past.cache, use_cache=True, return_dict=True
        )
        chunk.past.length += len(chunk.ids)
        return output
