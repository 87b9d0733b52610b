"""A long text, encoded in part, has the tokens of the whole text, for every kind of tokenizer; or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from ken_core import long_texts
from ken_core.boundaries import Boundaries
from ken_core.long_texts import LongTexts, Tokens
from tests.tiny_checkpoints import TEXTS, WORDS

MOST = 6
"""Tokens of the model, so that texts of some hundred characters are long."""
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CORPUS = [
    *TEXTS,
    " ".join(WORDS).replace("##", ""),
    "a  b   c, d.\n\ne f 12 345 6",
    "Ärger über Öl, Γεια σου, привет мир",
]
SPECIAL = ["<unk>", "<mask>", "<s>"]


def of_words(lowercase: bool) -> Tokenizer:
    """BERT's."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=20))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    return made


def of_bytes(pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """GPT-2's, RoBERTa's, Llama 3's, Qwen's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet),
    )
    return made


def of_pieces(pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer) -> Tokenizer:
    """T5's, XLM-R's, DeBERTa-v2's."""
    made = Tokenizer(models.Unigram())
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    made.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIAL, show_progress=False, unk_token="<unk>", max_piece_length=8
        ),
    )
    return made


def undivided(normalizer: normalizers.Normalizer) -> Tokenizer:
    """Llama 2's and Gemma's: no pre-tokenizer, a mark for every space, merges learned within words."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=250, special_tokens=SPECIAL, show_progress=False)
    )
    described = json.loads(made.to_str())
    described["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(described))
    made.normalizer = normalizer
    return made


def with_added(made: Tokenizer, *added: AddedToken) -> Tokenizer:
    made.add_tokens(list(added))
    return made


def sequence(*parts: normalizers.Normalizer) -> normalizers.Normalizer:
    return normalizers.Sequence(list(parts))


MASK = AddedToken("<mask>", lstrip=True, normalized=False)
MARKED = normalizers.Replace(" ", "▁")
OF_A_SPLIT = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
TWICE = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
FIRST = pre_tokenizers.Metaspace(prepend_scheme="first")
ONE_SPACE = normalizers.Replace(Regex(" {2,}"), " ")

JOINING: Mapping[str, Callable[[], Tokenizer]] = {
    "BERT, uncased": lambda: of_words(True),
    "BERT, cased": lambda: with_added(
        of_words(False), AddedToken("rain", single_word=True), AddedToken("##", rstrip=True)
    ),
    "GPT-2": lambda: of_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "RoBERTa": lambda: with_added(of_bytes(pre_tokenizers.ByteLevel(add_prefix_space=True)), MASK),
    "Llama 3": lambda: of_bytes(OF_A_SPLIT),
    "Qwen": lambda: with_added(of_bytes(OF_A_SPLIT, normalizers.NFC()), AddedToken("  ", normalized=False)),
    "XLM-R": lambda: with_added(of_pieces(TWICE, normalizers.NFKC()), MASK),
    "T5": lambda: of_pieces(FIRST, sequence(normalizers.Nmt(), normalizers.NFKC(), ONE_SPACE)),
    "ALBERT": lambda: of_pieces(
        pre_tokenizers.Metaspace(),
        sequence(
            normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()
        ),
    ),
    "digits apart": lambda: of_pieces(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()]
        ),
        normalizers.NFKC(),
    ),
}
ENDING: Mapping[str, Callable[[], Tokenizer]] = {
    "DeBERTa": lambda: of_pieces(pre_tokenizers.Metaspace(), sequence(normalizers.Strip(), normalizers.NFKC())),
    "Llama 2": lambda: undivided(sequence(normalizers.Prepend("▁"), MARKED)),
    "Gemma": lambda: undivided(MARKED),
}
UNKNOWN: Mapping[str, Callable[[], Tokenizer]] = {
    "a pattern of its own": lambda: of_bytes(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+ \w+|."), "isolated"), pre_tokenizers.ByteLevel()])
    ),
    "a token with a space": lambda: with_added(of_words(True), AddedToken("rain on")),
    "a token with a mark": lambda: with_added(of_pieces(FIRST, MARKED), AddedToken("rain▁on")),
    "a token that swallows a space": lambda: with_added(of_words(True), AddedToken("rain", rstrip=True)),
    "a space that is replaced": lambda: of_pieces(FIRST, normalizers.Replace("e ", "x")),
    "a letter that becomes a space": lambda: of_bytes(pre_tokenizers.ByteLevel(), normalizers.Replace("e", " ")),
}
ALL = {**JOINING, **ENDING, **UNKNOWN}

BITS = st.sampled_from(
    [
        *(
            "rain",
            "Sun",
            "on",
            "e",
            "x",
            "unbelievablylongwordthatnobodyknows",
            "ÄRGER",
            "Σίσυφος",
            "привет",
            "안녕",
            "שלום",
        ),
        *(" ", " ", " ", " ", "  ", "   ", "\n", "\t", "\u00a0", "\u3000", "\r\n", "\u200b", "\0"),
        *("1", "23", "4567", ".", ",", "'s", "``", "-", "▁", "##", "<mask>", "<s>", "</s>"),
        *(
            "東京",
            "。",
            "🙂",
            "👩\u200d👩",
            "e\u0301",
            "\u0301",
            "ﷺ",
            "ﬁ",
            "ŉ",
            "İ",
            "ß",
            "각",
            "\u1100\u1161",
            "क्षि",
            "ไทย",
        ),
    ]
)
TEXT = st.lists(st.tuples(BITS, st.sampled_from(["", " "])).map("".join), max_size=200).map("".join)


@cache
def tokenizer(make: str) -> Tokenizer:
    made = ALL[make]()
    made.no_padding()
    made.no_truncation()
    return made


def whole_of(make: str, text: str) -> Tokens:
    encoding = tokenizer(make).encode(text, add_special_tokens=False)
    return Tokens(encoding.ids, encoding.offsets, encoding.word_ids)


def from_zero(words: list[int | None]) -> list[int | None]:
    """Numbers of words, counted from the first."""
    first = next((word for word in words if word is not None), 0)
    return [None if word is None else word - first for word in words]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "_PART", 40)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", ALL)
@given(text=TEXT)
@example(text="rain on e " * 40)
@example(text="e" * 400)
@example(text=" " * 400)
@example(text="x" * 100 + " rain" * 100)
def test_the_tokens_that_are_kept_are_those_of_the_whole_text(make: str, side: str, text: str) -> None:
    read = LongTexts(tokenizer(make), MOST, side == "left").kept(text)
    found, expected = read.tokens, whole_of(make, text)
    assert read.more or found == expected
    assert not read.more or len(found) > MOST
    kept = slice(-MOST, None) if side == "left" else slice(0, MOST)
    assert (found.ids[kept], found.offsets[kept]) == (expected.ids[kept], expected.offsets[kept])
    assert from_zero(found.words[kept]) == from_zero(expected.words[kept])


@pytest.mark.parametrize("make", ALL)
@given(text=TEXT)
def test_a_text_in_parts_has_the_tokens_of_the_whole(small_parts: None, make: str, text: str) -> None:
    found, expected = LongTexts(tokenizer(make), MOST, False).whole(text), whole_of(make, text)
    assert (found.ids, found.offsets) == (expected.ids, expected.offsets)
    assert from_zero(found.words) == from_zero(expected.words)


@pytest.mark.parametrize("make", ALL)
def test_it_is_known_of_which_tokenizers_texts_may_be_divided(make: str) -> None:
    expected = Boundaries(make in JOINING) if make in JOINING or make in ENDING else None
    assert Boundaries.of(tokenizer(make)) == expected
