"""A random Llama small enough to be made in a test, with a byte-level tokenizer and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.chat_templates import CHATML
from tests.tiny_checkpoints import TEXTS, WORDS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
POSITIONS = 512
_WORDS_OF_CHATS = "system user assistant You are helpful"


def write_chat_tokenizer(folder: Path, template: Any = CHATML, **options: Any) -> PreTrainedTokenizerFast:
    """Write a tokenizer like SmolLM2's: bytes, digits alone, no special token around a text, ChatML's tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, " ".join(WORDS), _WORDS_OF_CHATS], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=template,
        **{"model_max_length": POSITIONS, **options},
    )
    made.save_pretrained(folder)
    return made


def write_language_model(folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write a random Llama of 2 layers with hidden size 32, its tokenizer, and the settings of its generation."""
    tokenizer = write_chat_tokenizer(folder)
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    }
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**{**sizes, **tokens, **config})).eval().save_pretrained(folder)
    return folder
