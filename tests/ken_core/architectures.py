"""A table of architectures, each small enough to be made in a test, with the heads transformers has for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)

VOCABULARY = 96
HEADS: Mapping[str, Any] = MappingProxyType(
    {
        "features": AutoModel,
        "sequence": AutoModelForSequenceClassification,
        "tokens": AutoModelForTokenClassification,
        "answers": AutoModelForQuestionAnswering,
        "masked-lm": AutoModelForMaskedLM,
        "causal-lm": AutoModelForCausalLM,
    }
)
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)


@dataclass(frozen=True)
class Architecture:
    """A model type, the sizes of a small one, and the names of its heads."""

    name: str
    heads: tuple[str, ...]
    sizes: Mapping[str, Any] = field(hash=False)
    mixes_dtypes: bool = False
    """Whether the model must be cast as a whole: saved in half precision, transformers loads some of its weights in
    float32 and then cannot multiply them."""

    def config(self, **changes: Any) -> PretrainedConfig:
        """A config of its class; wide weights, so that every layer shows in the answers."""
        config: PretrainedConfig = CONFIG_MAPPING[self.name](**{**self.sizes, **changes})
        return config


_LABELS = ("features", "sequence", "tokens", "answers")
_ENCODER = (*_LABELS, "masked-lm")
_BOTH = (*_ENCODER, "causal-lm")
_DECODER = (*_LABELS, "causal-lm")

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
_GROUPED = {**_SMALL, **_TOKENS, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 8}
_RELATIVE = {**_SMALL, "relative_attention": True, "position_biased_input": False}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "initializer_range": 0.2}

ARCHITECTURES = (
    Architecture(
        "bloom",
        _DECODER,
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2, **_TOKENS},
    ),
    Architecture("bert", _BOTH, _SMALL),
    Architecture(
        "deberta", _ENCODER, {**_RELATIVE, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}, mixes_dtypes=True
    ),
    Architecture("ernie", _BOTH, _SMALL),
    Architecture(
        "distilbert",
        _ENCODER,
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 40,
            "initializer_range": 0.2,
        },
    ),
    Architecture("electra", _BOTH, {**_SMALL, "embedding_size": 16}),
    Architecture("roberta", _BOTH, {**_SMALL, **_TOKENS}),
    Architecture("xlm-roberta", _BOTH, {**_SMALL, **_TOKENS}),
    Architecture("modernbert", _ENCODER, {**_SMALL, **_TOKENS, "cls_token_id": 1, "sep_token_id": 2}),
    Architecture(
        "deberta-v2",
        _ENCODER,
        {
            **_RELATIVE,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
    ),
    Architecture("albert", _ENCODER, {**_SMALL, "embedding_size": 16}),
    Architecture("mpnet", _ENCODER, {**_SMALL, **_TOKENS}),
    Architecture("gpt2", _DECODER, {**_GPT2, **_TOKENS}),
    Architecture("llama", _DECODER, _GROUPED),
    Architecture("mistral", _DECODER, _GROUPED),
    Architecture(
        "mixtral", _DECODER, {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    ),
    Architecture("qwen2", _DECODER, _GROUPED),
    Architecture("qwen3", _DECODER, {**_GROUPED, "head_dim": 8}),
    Architecture("gemma", ("features", "sequence", "tokens", "causal-lm"), _GEMMA),
    Architecture("gemma2", ("features", "sequence", "tokens", "causal-lm"), _GEMMA),
    Architecture("gemma3_text", ("features", "sequence", "causal-lm"), _GEMMA),
    Architecture("phi3", ("features", "sequence", "tokens", "causal-lm"), _GROUPED),
    Architecture(
        "opt",
        ("features", "sequence", "answers", "causal-lm"),
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 40,
            "word_embed_proj_dim": 16,
            "init_std": 0.2,
            **_TOKENS,
        },
    ),
    Architecture("gpt_neox", _DECODER, {**_SMALL, **_TOKENS}),
)
BY_NAME: Mapping[str, Architecture] = MappingProxyType({a.name: a for a in ARCHITECTURES})

_EXPERTS = {
    **_GROUPED,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
BUFFERED: Mapping[str, Architecture] = MappingProxyType(
    {
        a.name: a
        for a in (
            Architecture("glm4_moe", ("features", "causal-lm"), _EXPERTS),
            Architecture("gemma4_text", ("features", "causal-lm"), {**_GEMMA, "hidden_size_per_layer_input": 0}),
            Architecture("apertus", ("features", "tokens", "causal-lm"), _GROUPED),
        )
    }
)
"""Architectures whose backbone has persistent floating-point buffers: the bias a router picks experts by, a factor of
each layer, the constants of an activation."""
