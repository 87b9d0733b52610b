"""The encoder gives what AutoTokenizer gives, from any thread; rows become one padded batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, RobertaConfig

from ken_core import CheckpointError, extract, open_base, open_tuned
from ken_core.checkpoint import TOKENIZER_FILES
from ken_core.errors import TextTooLongError
from ken_core.long_texts import LongTexts, Read
from ken_core.tokenization import Encoded, Encoder, Input, collate
from tests.tiny_checkpoints import POSITIONS, TEXTS, WORDS, Tiny, write_base, write_tokenizer

LONG = " ".join(WORDS * 3)
PAIRS = [(a, b) for a in TEXTS for b in TEXTS[:3]]


@pytest.fixture(scope="session")
def encoder(tiny: Tiny) -> Encoder:
    return Encoder(tiny.base, tiny.base.config, {})


@pytest.fixture(scope="session")
def reference(tiny: Tiny) -> Callable[[Input], dict[str, list[int]]]:
    return reference_for(tiny.base_folder)


def reference_for(folder: Path) -> Callable[[Input], dict[str, list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(given: Input) -> dict[str, list[int]]:
        rows = tokenizer([given], truncation=True, max_length=POSITIONS)
        return {name: rows[name][0] for name in rows}

    return encode


@pytest.mark.parametrize(
    "given", [*TEXTS, "", " ", "ÄÖÜ ß 東京 🙂", "unknownword", LONG, *PAIRS, (LONG, LONG), ("", "")]
)
def test_texts_and_pairs_get_the_ids_and_segments_of_auto_tokenizer(
    given: Input, encoder: Encoder, reference: Callable[[Input], dict[str, list[int]]]
) -> None:
    (encoded,) = encoder([given])
    expected = reference(given)
    assert (list(encoded.ids), list(encoded.type_ids or [])) == (expected["input_ids"], expected["token_type_ids"])


@given(st.text(max_size=200), st.none() | st.text(max_size=200))
def test_any_text_gets_the_ids_of_auto_tokenizer(
    encoder: Encoder, reference: Callable[[Input], dict[str, list[int]]], text: str, pair: str | None
) -> None:
    one: Input = text if pair is None else (text, pair)
    assert list(encoder([one])[0].ids) == reference(one)["input_ids"]


def test_inputs_of_one_call_do_not_change_one_another(encoder: Encoder) -> None:
    mixed: list[Input] = ["rain", LONG, ("rain", "sun"), ""]
    assert encoder(mixed) == [encoder([one])[0] for one in mixed]


def test_an_input_longer_than_the_model_is_cut_and_says_so(encoder: Encoder) -> None:
    short, long, pair = encoder(["rain", LONG, ("rain", LONG)])
    assert [len(e) for e in (long, pair)] == [POSITIONS, POSITIONS]
    assert [short.truncated, long.truncated, pair.truncated] == [False, True, True]


def test_an_input_that_just_fits_is_not_called_cut(encoder: Encoder) -> None:
    just, more = encoder([" ".join(["rain"] * (POSITIONS - 2)), " ".join(["rain"] * (POSITIONS - 1))])
    assert (len(just), just.truncated) == (POSITIONS, False)
    assert (len(more), more.truncated) == (POSITIONS, True)


def test_a_tokenizer_that_cuts_on_the_left_does_so_here_too(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    write_tokenizer(folder, truncation_side="left")
    base = open_base(str(folder))
    assert list(Encoder(base, base.config, {})([LONG])[0].ids) == reference_for(folder)(LONG)["input_ids"]


def test_many_threads_may_encode_at_once(encoder: Encoder) -> None:
    texts: list[Input] = [*TEXTS, *PAIRS, LONG]
    expected = encoder(texts)
    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(encoder, [texts] * 100))


def test_a_tasks_own_tokenizer_replaces_the_bases(tiny: Tiny, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, [*reversed(WORDS)])
    own = {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}
    encoder = Encoder(tiny.base, tiny.base.config, own)
    expected = reference_for(tmp_path)
    assert [list(e.ids) for e in encoder(list(TEXTS))] == [expected(t)["input_ids"] for t in TEXTS]
    assert list(encoder(["rain"])[0].ids) != list(Encoder(tiny.base, tiny.base.config, {})(["rain"])[0].ids)


def test_a_delta_may_have_numbers_as_large_as_its_bases(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.base_folder, tmp_path / "large")
    edited = json.loads((tmp_path / "large/config.json").read_text()) | {"rope_theta": 10_000_000}
    (tmp_path / "large/config.json").write_text(json.dumps(edited))
    base = open_base(str(tmp_path / "large"))
    delta = extract(base, open_tuned(str(tmp_path / "large")))
    own = {name: (tiny.base_folder / name).read_bytes() for name in TOKENIZER_FILES}
    assert Encoder.of(base, replace(delta, files=own))(["spam"])


def test_a_tokenizer_shorter_than_the_models_positions_sets_the_length(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": 10}))
    base = open_base(str(folder))
    assert len(Encoder(base, base.config, {})([LONG])[0]) == 10


def test_a_tokenizer_that_names_no_length_is_cut_to_the_models_positions(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told.pop("model_max_length")
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    base = open_base(str(folder))
    assert len(Encoder(base, base.config, {})([LONG])[0]) == POSITIONS


def test_roberta_counts_its_positions_from_behind_the_padding(tiny: Tiny) -> None:
    config = RobertaConfig(max_position_embeddings=34, pad_token_id=1)
    assert Encoder(tiny.base, config, {}).max_length == 32


def test_a_base_without_a_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    base = open_base(str(folder))
    with pytest.raises(CheckpointError, match="tokenizer"):
        Encoder(base, base.config, {})


# Texts of any length


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The characters of each part of a long text that is encoded."""
    found: list[int] = []
    real = LongTexts.read

    def read(self: LongTexts, text: str, part: slice, more: bool = False) -> Read:
        found.append(len(text[part]))
        return real(self, text, part, more)

    monkeypatch.setattr(LongTexts, "read", read)
    return found


def test_of_a_long_text_no_more_is_encoded_than_fits(encoder: Encoder, handed: list[int]) -> None:
    (row, located) = encoder(["a " * 1_000_000])[0], encoder.located(["a " * 1_000_000])[0]
    assert sum(handed) <= 2 * 8 * POSITIONS
    assert row == located.row == encoder(["a " * 100])[0]
    assert located.offsets[-1] == (2 * (POSITIONS - 3), 2 * (POSITIONS - 3) + 1)


def test_a_text_whose_first_tokens_come_late_is_read_as_far_as_they_are(encoder: Encoder, handed: list[int]) -> None:
    text = ("x" * 200 + " ") * 400 + "rain " * 100_000
    assert list(encoder([text])[0].ids)[1:-1] == [encoder.unk_id] * (POSITIONS - 2)
    assert sum(handed) < 50_000
    assert encoder([" " * 100_000 + "rain " * 1000]) == encoder(["rain " * 1000])


@pytest.mark.parametrize("text", [" " * 1_000_000, "x" * 1_000_000, "雨" * 1_000_000], ids=["spaces", "a word", "rain"])
def test_a_text_that_cannot_be_told_in_a_bound_of_characters_is_refused_unread(
    encoder: Encoder, handed: list[int], text: str
) -> None:
    for ask in (encoder, encoder.located, encoder.parts):
        with pytest.raises(TextTooLongError, match=r"1000000 characters; .* send at most 131072"):
            ask([text])
    with pytest.raises(TextTooLongError, match="1000000 characters"):
        encoder.long_texts.parts(text)
    assert not handed


def test_a_text_within_the_bound_is_encoded_whole_where_it_must_be(encoder: Encoder, handed: list[int]) -> None:
    assert encoder(["雨" * 131_072]) == encoder(["雨" * 500])
    assert handed == [131_072]


@pytest.mark.parametrize("text", ["rain " * 400_000, "rain " * 30 + " " * 2_000_000], ids=["words", "spaces"])
def test_pairs_with_a_text_of_any_length_are_cut_exactly_or_refused(encoder: Encoder, text: str) -> None:
    """A row of two texts has room for an odd number of tokens; if both are cut, the longer text gets the odd one."""
    if text.endswith(" " * 9):
        with pytest.raises(TextTooLongError):
            encoder([(text, "sun")])
        return
    assert encoder([(text, "sun"), ("sun", text)]) == encoder([("rain " * 99, "sun"), ("sun", "rain " * 99)])
    with pytest.raises(TextTooLongError, match="which has more tokens"):
        encoder([(text, text)])


def test_a_text_that_is_read_whole_is_encoded_in_parts(encoder: Encoder, handed: list[int]) -> None:
    tokens = encoder.long_texts.whole("rain " * 100_000)
    assert max(handed) <= 1 << 14
    assert (len(tokens), tokens.offsets[-1], tokens.words[-1]) == (100_000, (499_995, 499_999), 99_999)


def test_a_tokenizer_that_looks_up_words_of_any_length_is_refused(tmp_path: Path) -> None:
    """The time grows with the cube of a word's length: a day for one word that a request may hold."""
    folder = write_base(tmp_path / "base")
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["max_input_chars_per_word"] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(told))
    base = open_base(str(folder))
    with pytest.raises(CheckpointError, match="words of 100000 characters"):
        Encoder(base, base.config, {})


# collate


def test_rows_are_padded_on_the_right_to_the_longest() -> None:
    rows = [Encoded([5, 6, 7], [0, 0, 1], False), Encoded([8], [1], False)]
    batch = collate(rows, pad_id=9, device=torch.device("cpu"))
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "token_type_ids": [[0, 0, 1], [1, 0, 0]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_model_without_segments_gets_none() -> None:
    batch = collate([Encoded([5], None, False)], pad_id=0, device=torch.device("cpu"))
    assert set(batch) == {"input_ids", "attention_mask"}


def test_a_batch_is_what_auto_tokenizer_would_have_padded(tiny: Tiny, encoder: Encoder) -> None:
    expected = AutoTokenizer.from_pretrained(tiny.base_folder)(list(TEXTS), padding=True, return_tensors="pt")
    batch = collate(encoder(list(TEXTS)), encoder.pad_id, torch.device("cpu"))
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
