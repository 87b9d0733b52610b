"""Tokens become text as they come: whole characters alone, whatever tokens they are divided into."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

from ken_core.text_stream import TextStream, TokenBytes
from tests.tiny_language_models import write_chat_tokenizer

TEXTS = (
    "how far is the mountain from the city?",
    "naïve Ærøskøbing; Москва, 東京へ行く, مرحبا, \U0001f44d\U0001f3fd \U0001f469‍\U0001f4bb",
    " \t\n  two  spaces\n\n",
    "",
)


@pytest.fixture(scope="module")
def bytes_alone(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer like SmolLM2's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_chat_tokenizer(folder)
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    return tokenizer


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return tokenizer_of_pieces()


@cache
def tokenizer_of_pieces() -> Tokenizer:
    """A tokenizer like Llama 2's: a space is a mark before the word, and unknown characters are bytes."""
    words = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁how", "▁far", "▁", "o", "a"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def streamed(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.add(token) for token in ids), stream.end()]


@pytest.mark.parametrize("text", TEXTS)
def test_parts_make_the_whole_text_and_no_part_has_half_a_character(bytes_alone: Tokenizer, text: str) -> None:
    ids = bytes_alone.encode(text).ids
    parts = streamed(TextStream(bytes_alone, []), ids)
    assert "".join(parts) == text
    assert "�" not in "".join(parts)


def test_half_a_character_at_the_end_is_shown_as_such(bytes_alone: Tokenizer) -> None:
    ids = bytes_alone.encode("a 東").ids[:-1]
    parts = streamed(TextStream(bytes_alone, []), ids)
    assert parts[-1].startswith("�") or parts[-1].endswith("�")
    assert "".join(parts) == bytes_alone.decode(ids)


def test_a_space_at_the_beginning_depends_on_what_stands_before(pieces: Tokenizer) -> None:
    how, far = pieces.token_to_id("▁how"), pieces.token_to_id("▁far")
    assert streamed(TextStream(pieces, [how]), [far]) == [" far", ""]
    assert streamed(TextStream(pieces, []), [far]) == ["far", ""]
    (letter,) = (pieces.token_to_id("o"),)
    assert streamed(TextStream(pieces, [how]), [letter, 1 + 0xC3, 1 + 0xA9]) == ["o", "", "é", ""]


def test_bytes_that_turn_out_to_be_no_character_are_shown_as_such(pieces: Tokenizer) -> None:
    """`tokenizers` decodes a run of bytes as one, and takes back what it gave out where the run is invalid."""
    far = pieces.token_to_id("▁far")
    broken = [1 + byte for byte in (0xEC, 0x84, 0xAC, 0xEC)]
    text = "".join(streamed(TextStream(pieces, []), [*broken, far]))
    assert text.startswith("섬")
    assert text.removeprefix("섬").strip("�") == " far"
    assert "".join(streamed(TextStream(pieces, broken), [far])).endswith(" far")


def test_bytes_that_never_make_a_character_are_not_held_for_ever(bytes_alone: Tokenizer) -> None:
    half = bytes_alone.encode("東").ids[0]
    stream = TextStream(bytes_alone, [])
    parts = [stream.add(half) for _ in range(100)]
    assert sum(map(bool, parts)) >= 5
    assert set("".join([*parts, stream.end()])) == {"\N{REPLACEMENT CHARACTER}"}


@given(st.lists(st.integers(0, 261), max_size=12), st.lists(st.integers(0, 261), max_size=8))
def test_no_tokens_have_no_text(ids: list[int], before: list[int]) -> None:
    tokenizer = tokenizer_of_pieces()
    parts = streamed(TextStream(tokenizer, before), ids)
    assert all(isinstance(part, str) for part in parts)


def test_special_tokens_are_left_out_unless_asked_for(bytes_alone: Tokenizer) -> None:
    ids = [*bytes_alone.encode("rain").ids, bytes_alone.token_to_id("<|im_end|>"), *bytes_alone.encode("rain").ids]
    special = TokenBytes(bytes_alone).special
    assert "".join(streamed(TextStream(bytes_alone, [], special), ids)) == "rainrain"
    assert "".join(streamed(TextStream(bytes_alone, []), ids)) == "rain<|im_end|>rain"


def test_bytes_of_tokens(bytes_alone: Tokenizer, pieces: Tokenizer) -> None:
    for text in TEXTS:
        found = TokenBytes(bytes_alone)
        assert b"".join(found(token) for token in bytes_alone.encode(text).ids) == text.encode()
    assert TokenBytes(bytes_alone)(bytes_alone.token_to_id("<|im_end|>")) == b"<|im_end|>"
    assert TokenBytes(pieces)(1 + 0xC3) == b"\xc3"
    assert TokenBytes(pieces)(pieces.token_to_id("▁how")) == b" how"
    assert TokenBytes(pieces)(10_000) == b""
