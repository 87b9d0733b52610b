"""Rows put together from parts are those that AutoTokenizer makes, for every family of tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig

from ken_core import CheckpointError, open_base
from ken_core.templates import Template, longest_first, overlapping
from ken_core.tokenization import Encoder, Window
from tests.tiny_checkpoints import POSITIONS, TEXTS, WORDS, write_base
from tests.tiny_tokenizers import WRITERS

LONG = " ".join(WORDS).replace(" ##", "") + " 東京 MÜNCHEN 🙂"
FAMILIES = list(WRITERS)
Encoders = Callable[[str], tuple[Encoder, Any]]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    """``encoders(family)``: an encoder, and the AutoTokenizer of the same files."""

    @cache
    def make(family: str) -> tuple[Encoder, Any]:
        folder = write_base(tmp_path_factory.mktemp("base"))
        WRITERS[family](folder)
        return Encoder(open_base(str(folder)), BertConfig(), {}), AutoTokenizer.from_pretrained(folder)

    return make


def inputs_of(encoding: Any) -> tuple[list[int], list[int]]:
    return encoding.ids, encoding.type_ids


# Two texts in one row

WORDS_OF_A_TEXT = st.lists(st.sampled_from([*WORDS, "unknownword", "東京", "🙂"]), min_size=1, max_size=90)


@pytest.mark.parametrize("family", FAMILIES)
@given(first=WORDS_OF_A_TEXT, second=WORDS_OF_A_TEXT)
def test_two_texts_are_cut_as_auto_tokenizer_cuts_them(
    encoders: Encoders, family: str, first: list[str], second: list[str]
) -> None:
    encoder, reference = encoders(family)
    texts = " ".join(first), " ".join(second)
    expected = reference(*texts, truncation=True, max_length=POSITIONS)
    (row,) = encoder([texts])
    parts = encoder.parts(texts)
    assert row == encoder.pair(*parts)
    assert list(row.ids) == expected["input_ids"]
    assert row.type_ids == expected.get("token_type_ids")
    assert row.truncated == (len(reference(*texts)["input_ids"]) > POSITIONS)


@pytest.mark.parametrize("family", FAMILIES)
@given(first=WORDS_OF_A_TEXT, second=WORDS_OF_A_TEXT.filter(lambda words: len(words) < 5))
def test_only_the_first_text_is_cut_where_the_second_must_stay(
    encoders: Encoders, family: str, first: list[str], second: list[str]
) -> None:
    encoder, reference = encoders(family)
    texts = " ".join(first), " ".join(second)
    expected = reference(*texts, truncation="only_first", max_length=POSITIONS)["input_ids"]
    assert list(encoder.pair_keeping_second(*encoder.parts(texts)).ids) == expected


def test_a_tokenizer_that_cuts_on_the_left_does_so_in_pairs_too(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"truncation_side": "left"}))
    base = open_base(str(folder))
    encoder, reference = Encoder(base, base.config, {}), AutoTokenizer.from_pretrained(folder)
    for texts in [(LONG, TEXTS[0]), (TEXTS[0], LONG), (LONG, LONG[9:]), (LONG * 9, LONG * 9)]:
        expected = reference(*texts, truncation=True)["input_ids"]
        assert [list(encoder([texts])[0].ids), list(encoder.pair(*encoder.parts(texts)).ids)] == [expected, expected]


def test_pairs_of_texts_of_any_length_are_encoded_beside_others_in_their_order(encoders: Encoders) -> None:
    """`tokenizers` itself would build every combination of the cut-off parts of both texts: 17 GB here."""
    encoder, _ = encoders("word pieces")
    huge, some = "rain " * 20_000, "rain " * 100
    mixed = [(huge, huge), "rain", (huge, "sun"), ("sun", huge), huge, ("sun", "rain")]
    cut = [(some, some), "rain", (some, "sun"), ("sun", some), some, ("sun", "rain")]
    assert encoder(mixed) == encoder(cut) == [encoder([one])[0] for one in cut]


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_the_longer_of_two_texts_is_cut_first(first: int, second: int, room: int) -> None:
    kept = longest_first(first, second, room)
    assert sum(kept) == min(room, first + second)
    assert all(0 <= k <= n for k, n in zip(kept, (first, second), strict=True))
    if kept != (first, second):
        assert abs(kept[0] - kept[1]) <= 1 or min(kept) == min(first, second)


def test_a_tokenizer_that_knows_no_letter_is_a_clear_error(encoders: Encoders) -> None:
    _, reference = encoders("word pieces")
    with pytest.raises(CheckpointError, match="no token for 'a'"):
        Template.of(reference("")[0], 1)


# Windows


@pytest.mark.parametrize("text", [LONG, LONG[3:90], *TEXTS, "", "  two  spaces "])
@pytest.mark.parametrize("family", FAMILIES)
def test_places_of_tokens_are_those_of_auto_tokenizer(family: str, text: str, encoders: Encoders) -> None:
    encoder, reference = encoders(family)
    (window,) = encoder.located([text])
    expected = reference(text, truncation=True).encodings[0]
    assert window.row == encoder([text])[0]
    assert_same_places(window, expected, 0)


@pytest.mark.parametrize("stride", [0, 1, 30, 61])
@pytest.mark.parametrize("text", [LONG, TEXTS[0], ""])
@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_those_of_auto_tokenizer(family: str, text: str, stride: int, encoders: Encoders) -> None:
    encoder, reference = encoders(family)
    windows = list(encoder.windows(encoder.long_texts.whole(text), stride))
    expected = reference(text, truncation=True, stride=stride, return_overflowing_tokens=True).encodings
    for window, encoding in zip(windows, expected, strict=True):
        assert_same_places(window, encoding, 0)


@pytest.mark.parametrize("stride", [0, 1, 17])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_windows_beside_another_text_are_those_of_auto_tokenizer(
    family: str, side: str, stride: int, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, reference = encoders(family)
    monkeypatch.setattr(encoder, "pads_left", side == "left")
    (question,) = encoder.parts([TEXTS[0]])
    windows = encoder.windows_beside(
        question.ids, encoder.long_texts.whole(LONG), encoder.room_beside(question.whole, 60), stride
    )
    texts, cut = ((TEXTS[0], LONG), "only_second") if side == "right" else ((LONG, TEXTS[0]), "only_first")
    expected = reference(*texts, truncation=cut, max_length=60, stride=stride, return_overflowing_tokens=True)
    for window, encoding in zip(windows, expected.encodings, strict=True):
        assert_same_places(window, encoding, 1 if side == "right" else 0)


def assert_same_places(window: Window, expected: Any, sequence: int) -> None:
    places = [i for i, text in enumerate(expected.sequence_ids) if text == sequence]
    assert list(window.row.ids) == expected.ids
    assert window.row.type_ids in (None, expected.type_ids)
    assert list(range(window.at, window.at + len(window.offsets))) == (places or list(range(window.at, window.at)))
    assert list(window.ids) == [expected.ids[i] for i in places]
    assert list(window.offsets) == [expected.offsets[i] for i in places]
    assert list(window.words) == [expected.word_ids[i] for i in places]


@given(st.integers(0, 50), st.integers(1, 20), st.integers(0, 19))
def test_parts_cover_a_length_and_overlap_as_told(length: int, room: int, stride: int) -> None:
    stride = min(stride, room - 1)
    parts = overlapping(length, room, stride)
    assert {i for part in parts for i in part} == set(range(length))
    assert all(len(part) == room for part in parts[:-1])
    assert len(parts[-1]) <= room
    assert all(before.stop - after.start == stride for before, after in pairwise(parts))


def test_tokens_are_joined_as_auto_tokenizer_joins_them(encoders: Encoders) -> None:
    for family in FAMILIES:
        encoder, reference = encoders(family)
        tokens = reference.convert_ids_to_tokens(reference(TEXTS[4])["input_ids"])
        assert [encoder.token(i) for i in reference(TEXTS[4])["input_ids"]] == tokens
        assert encoder.joined(tokens) == reference.convert_tokens_to_string(tokens)
