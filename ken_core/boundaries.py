"""Where a text may be divided, so that the tokens of its parts are those of the whole.

A long text need not be encoded whole to know its first tokens, but a cut anywhere else changes the tokens before it:
half a word has other pieces than the whole, and WordPiece knows no piece at all of a word that is too long. Between two
words with one space between them nothing reaches across in the tokenizers in use: their normalisers change letters one
by one, their pre-tokenizers divide there, and where nothing divides (Llama's BPE) no entry of the vocabulary has the
space behind a letter, so none is ever merged over it. `Boundaries.of` looks whether a tokenizer is made of such parts
alone; of one that is not nothing is assumed, and its texts are encoded whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

_MARK = "▁"
_LETTERS = "A-Za-z0-9À-ÖØ-öø-ɏΆΈ-ΊΌΎ-ΡΣ-ώЀ-ҁҊ-ԯא-תؠ-ي가-힣"
"""Of scripts that put spaces between words: characters that begin no space and join nothing when normalised."""
_PLACE = re.compile(f"(?<=[{_LETTERS}]) (?=[{_LETTERS}])")
_CROSSING = re.compile(f"[^\\s{_MARK}][\\s{_MARK}]")
_CROSSING_MARK = re.compile(f"[^\\s{_MARK}]{_MARK}")
_EDGE = re.compile(f"[{_LETTERS}]")

_LOCAL_NORMALIZERS = frozenset(
    (
        "BertNormalizer",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "StripAccents",
        "Nmt",
        "Precompiled",
        "Prepend",
        "Strip",
    )
)
_DIVIDING = frozenset(("BertPreTokenizer", "Whitespace", "WhitespaceSplit"))
_LOCAL_PRE_TOKENIZERS = frozenset(("Digits", "Punctuation"))
_RUNS_OF_SPACES = {"Regex": " {2,}"}
_NO_LETTER_WITH_A_SPACE = frozenset(
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
"""The patterns of GPT-4 and Llama 3, and of Qwen 2: a match that has a letter ends before the next space."""

_Part = Mapping[str, Any]


@dataclass(frozen=True)
class Boundaries:
    """Of a tokenizer whose tokens never reach from one word into the next.

    Attributes:
        joins: whether what follows a boundary is encoded as if it were a text of its own; else that is known only of
            what is before it.
    """

    joins: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Boundaries | None:
        """Those of a tokenizer, None if it has a part of which nothing is known."""
        normalizers, pre_tokenizers = _flat(tokenizer.normalizer), _flat(tokenizer.pre_tokenizer)
        if not all(map(_is_local, normalizers)) or not all(map(_is_known, pre_tokenizers)):
            return None
        if not all(map(_ends_at_spaces, tokenizer.get_added_tokens_decoder().values())):
            return None
        if any(map(_divides, pre_tokenizers)):
            return cls(joins=not any(map(_changes_a_start, normalizers)))
        marked = any(map(_marks_spaces, [*normalizers, *pre_tokenizers]))
        return cls(joins=False) if marked and _merges_within_words(tokenizer) else None

    @staticmethod
    def last(text: str, start: int, stop: int) -> int | None:
        """The last boundary after `start` and not after `stop`, where its space is; None if there is none."""
        at = text.rfind(" ", start + 1, stop + 1)
        while at > start and _PLACE.match(text, at) is None:
            at = text.rfind(" ", start + 1, at)
        return at if at > start else None

    @staticmethod
    def first(text: str, start: int, stop: int) -> int | None:
        """The first one not before `start` and before `stop`, likewise."""
        found = _PLACE.search(text, start, stop + 1)
        return found.start() if found else None


def _flat(part: Normalizer | PreTokenizer | None) -> list[_Part]:
    """What a part is made of, as a tokenizer's file describes it; the whole file would hold the vocabulary too."""
    return [] if part is None else _leaves(json.loads(part.__getstate__()))


def _leaves(described: _Part) -> list[_Part]:
    if described["type"] != "Sequence":
        return [described]
    parts: Iterable[_Part] = described.get("normalizers") or described.get("pretokenizers") or ()
    return [leaf for part in parts for leaf in _leaves(part)]


def _is_local(normalizer: _Part) -> bool:
    """Whether it leaves one space between two letters, and changes either side whatever the other is."""
    if normalizer["type"] != "Replace":
        return normalizer["type"] in _LOCAL_NORMALIZERS
    pattern = normalizer["pattern"]
    if pattern == _RUNS_OF_SPACES:
        return True
    replaced = pattern.get("String")
    if replaced == " ":
        return _marks_spaces(normalizer)
    return bool(replaced) and not re.search(f"[{_LETTERS}\\s{_MARK}]", replaced)


def _marks_spaces(part: _Part) -> bool:
    """Whether it writes a mark for every space."""
    if part["type"] == "Metaspace":
        return bool(part["replacement"] == _MARK)
    return bool(part["type"] == "Replace" and part["pattern"] == {"String": " "} and part["content"] == _MARK)


def _changes_a_start(normalizer: _Part) -> bool:
    return bool(normalizer["type"] == "Prepend" or (normalizer["type"] == "Strip" and normalizer["strip_left"]))


def _is_known(pre_tokenizer: _Part) -> bool:
    match pre_tokenizer["type"]:
        case "Split":
            return _divides(pre_tokenizer)
        case "Metaspace":
            return _marks_spaces(pre_tokenizer)
        case kind:
            return kind == "ByteLevel" or kind in _DIVIDING | _LOCAL_PRE_TOKENIZERS


def _divides(pre_tokenizer: _Part) -> bool:
    """Whether it ends a word at a space behind a letter."""
    match pre_tokenizer["type"]:
        case "ByteLevel":
            return bool(pre_tokenizer["use_regex"])
        case "Metaspace":
            return bool(pre_tokenizer["split"])
        case "Split":
            pattern = pre_tokenizer["pattern"].get("Regex")
            isolates = pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]
            return isolates and pattern in _NO_LETTER_WITH_A_SPACE
        case kind:
            return kind in _DIVIDING


def _ends_at_spaces(added: AddedToken) -> bool:
    """Whether an added token neither holds a boundary nor swallows the space of one."""
    swallows = (added.rstrip and _EDGE.match(added.content[-1:])) or (added.lstrip and _EDGE.match(added.content[:1]))
    return not swallows and _CROSSING.search(added.content) is None


def _merges_within_words(tokenizer: Tokenizer) -> bool:
    """Of a text that nothing divides: whether no entry reaches over a boundary, and the mark is an entry itself."""
    model, vocabulary = tokenizer.model, tokenizer.get_vocab(False)
    if isinstance(model, BPE) and (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix):
        return False
    known = isinstance(model, BPE | Unigram) and _MARK in vocabulary
    return known and not any(map(_CROSSING_MARK.search, vocabulary))
