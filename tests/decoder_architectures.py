"""Tiny causal language models of many architectures, all with the tokenizer of `tiny_language_models`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_language_models import write_chat_tokenizer

POSITIONS = 256
WINDOW = 12
_LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
}  # fmt: skip
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
_OWN_SIZE = {**_LLAMA, "head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2}

PACKED: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": {**_LLAMA, "sliding_window": WINDOW},
        "qwen2": _LLAMA,
        "qwen3": _OWN_SIZE,
        "gemma": _OWN_SIZE,
        "gemma3_text": {**_OWN_SIZE, "sliding_window": WINDOW, "num_hidden_layers": 7},
        "phi3": _LLAMA,
        "smollm3": _LLAMA,
        "granite": {**_LLAMA, "logits_scaling": 4.0, "embedding_multiplier": 2.0},
        "olmo2": _LLAMA,
        "cohere2": {**_LLAMA, "sliding_window": WINDOW, "num_hidden_layers": 4},
        "gpt_neox": _LLAMA,
        "gpt2": _GPT2,
        "gpt_bigcode": _GPT2,
        "opt": {
            "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS, "word_embed_proj_dim": 32,
        },
        "qwen2_moe": {
            **_LLAMA, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
        "mixtral": {**_LLAMA, **_EXPERTS, "num_local_experts": 4},
        "starcoder2": _LLAMA,
    }
)  # fmt: skip
"""Model type -> sizes, of those whose sequences share a pass."""

ALONE: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "gpt_neo": {
            "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": POSITIONS, "window_size": WINDOW,
        },
        "gptj": {**_GPT2, "rotary_dim": 8},
        "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        "gemma2": {**_OWN_SIZE, "sliding_window": WINDOW},
        "gpt_oss": {**_OWN_SIZE, **_EXPERTS, "num_local_experts": 4, "sliding_window": WINDOW},
        "llama4_text": {
            **_OWN_SIZE, "num_local_experts": 2, "intermediate_size_mlp": 64, "attention_chunk_size": WINDOW,
            "pad_token_id": 2,
        },
    }
)  # fmt: skip
"""Of those whose sequences run one by one."""

REFUSED: Mapping[str, tuple[dict[str, Any], str]] = MappingProxyType(
    {
        "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "recurrent"),
        "jamba": ({**_LLAMA, **_EXPERTS, "num_experts": 2}, "recurrent"),
        "recurrent_gemma": (_LLAMA, "recurrent"),
        "bert": (
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
            "both directions",
        ),
        "t5": ({"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8}, "encoder with a decoder"),
        "doge": ({**_LLAMA, "keep_window_size": WINDOW}, "by the chunk"),
        "openai-gpt": (_GPT2, "a trial fails with RuntimeError"),
        "llama": (
            {**_LLAMA, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
            "'dynamic'",
        ),
    }
)  # fmt: skip
"""Of those that do not generate, with a part of the reason."""


def config_of(model_type: str, sizes: Mapping[str, Any], vocabulary: int = 400) -> Any:
    """The config of a tiny model."""
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return AutoConfig.for_model(model_type, **{"vocab_size": vocabulary, **tokens, **sizes})


def write_decoder(folder: Path, model_type: str, sizes: Mapping[str, Any]) -> Path:
    """Write a random model of an architecture, whose texts do not repeat one token."""
    tokenizer = write_chat_tokenizer(folder)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config_of(model_type, sizes, len(tokenizer)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    model.eval().save_pretrained(folder)
    return folder
