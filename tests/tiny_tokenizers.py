"""Tokenizers of the families that fine-tunes come with (word pieces, bytes, pieces), small enough to make in a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.tiny_checkpoints import POSITIONS, TEXTS, WORDS, write_tokenizer

Write = Callable[[Path], None]
VOCABULARY = 320
"""The most tokens that a tokenizer of this module has."""


def write_word_piece(folder: Path) -> None:
    """Write a tokenizer like BERT's, including the decoder that joins tokens to text."""
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_byte_level(folder: Path) -> None:
    """Write a tokenizer like RoBERTa's: bytes; a space is part of the token after it but not of its offsets."""
    tokenizer = _trained_on_bytes(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    _save(tokenizer, folder, cls="<s>", sep="</s>", pad="<pad>", unk="<unk>")


def write_pieces(folder: Path) -> None:
    """Write a tokenizer like DeBERTa-v2's and XLM-R's: a unigram model; a space is a mark before the word."""
    words = [(f"▁{word}", -3.0 - i / 100) for i, word in enumerate(w for w in WORDS if w.isalpha())]
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz,.?!'"]
    special = [(token, 0.0) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")]
    tokenizer = Tokenizer(models.Unigram([*special, *words, *letters], unk_id=1))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    _save(tokenizer, folder, ("input_ids", "token_type_ids", "attention_mask"), "[CLS]", "[SEP]", "[PAD]", "[UNK]")


def write_decoders_own(folder: Path) -> None:
    """Write a tokenizer like Qwen's: bytes, and no special token around a text."""
    tokenizer = _trained_on_bytes(["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _save(tokenizer, folder, pad="<|endoftext|>")


WRITERS: Mapping[str, Write] = {
    "word pieces": write_word_piece,
    "bytes": write_byte_level,
    "pieces": write_pieces,
    "bytes alone": write_decoders_own,
}


def _trained_on_bytes(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, " ".join(WORDS)], trainer)
    return tokenizer


def _save(
    tokenizer: Tokenizer,
    folder: Path,
    names: tuple[str, ...] = ("input_ids", "attention_mask"),
    cls: str | None = None,
    sep: str | None = None,
    pad: str | None = None,
    unk: str | None = None,
) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=list(names),
        model_max_length=POSITIONS,
        cls_token=cls,
        sep_token=sep,
        pad_token=pad,
        unk_token=unk,
    ).save_pretrained(folder)
