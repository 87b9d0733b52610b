"""Where a text may be divided, so that the tokens of its parts are the tokens of the whole text.

To know the first tokens of a long text, it is enough to encode its beginning, if it is cut in the right place. A cut
inside a word changes the tokens before it: half a word has other pieces than the whole word, and WordPiece knows no
piece at all of a word that is too long. The right place is a single space between two words. In the tokenizers in use
no token reaches across it: their normalisers change letters one by one, and their pre-tokenizers divide the text there.
Where no pre-tokenizer divides (Llama's BPE), no entry of the vocabulary has a space behind a letter, so no merge
crosses the space. `Boundaries.of` checks whether a tokenizer is made of such parts alone. Nothing is assumed about a
tokenizer with other parts, and its texts are encoded whole.
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
"""Letters and digits of scripts that put spaces between words. Normalising one of them yields no text that begins with
a space, and joins it to no neighbour."""
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
    """The boundaries in texts for a tokenizer whose tokens never reach from one word into the next.

    Attributes:
        joins: whether the text after a boundary is encoded as if it were a text of its own. Otherwise that is known
            only of the text before a boundary.
    """

    joins: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Boundaries | None:
        """The boundaries for a tokenizer, None if it has a part of which nothing is known."""
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
        """The place of the space of the last boundary after `start` and not after `stop`; None if there is none."""
        at = text.rfind(" ", start + 1, stop + 1)
        while at > start and _PLACE.match(text, at) is None:
            at = text.rfind(" ", start + 1, at)
        return at if at > start else None

    @staticmethod
    def first(text: str, start: int, stop: int) -> int | None:
        """The place of the space of the first boundary from `start` on and before `stop`; None if there is none."""
        found = _PLACE.search(text, start, stop + 1)
        return found.start() if found else None


def _flat(part: Normalizer | PreTokenizer | None) -> list[_Part]:
    """The steps of a normaliser or pre-tokenizer, as tokenizer.json describes them.

    Only that part of the tokenizer is written as JSON; all of it would include the vocabulary.
    """
    return [] if part is None else _leaves(json.loads(part.__getstate__()))


def _leaves(described: _Part) -> list[_Part]:
    if described["type"] != "Sequence":
        return [described]
    parts: Iterable[_Part] = described.get("normalizers") or described.get("pretokenizers") or ()
    return [leaf for part in parts for leaf in _leaves(part)]


def _is_local(normalizer: _Part) -> bool:
    """Whether a normaliser leaves a space between two letters, and changes either side regardless of the other."""
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
    """Whether a step writes a mark for every space."""
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
    """Whether a pre-tokenizer ends a word at a space behind a letter."""
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
    """For texts that no pre-tokenizer divides: whether no vocabulary entry reaches over a boundary.

    The mark for a space has to be an entry itself.
    """
    model, vocabulary = tokenizer.model, tokenizer.get_vocab(False)
    if isinstance(model, BPE) and (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix):
        return False
    known = isinstance(model, BPE | Unigram) and _MARK in vocabulary
    return known and not any(map(_CROSSING_MARK.search, vocabulary))
