"""Checks of the tokenizer files that a delta brings: size and content before they are loaded, token ids afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import transformers
from transformers import PretrainedConfig, PreTrainedTokenizer, PreTrainedTokenizerFast

from ken_core import foreign_json
from ken_core.chat_template import MOST_CHARACTERS
from ken_core.errors import DeltaFormatError
from ken_core.foreign import reading
from ken_core.tokenization import Encoder
from ken_core.tokenizer_files import LONGEST_WORD

_PLACES_AND_CODE = {"auto_map", "gguf_file", "init_inputs", "slow_tokenizer", "tokenizer_object", "__slow_tokenizer"}
"""Keys of tokenizer_config.json that name code or other files, or that replace the tokenizer itself."""
_BYTES, _BYTES_A_TOKEN = 16 << 20, 256
"""Bytes a file may have in any case, and for each token. The largest tokenizers known (Gemma's, of 262,144 tokens and
33 MB) take 130 bytes a token."""
_VALUES, _VALUES_A_TOKEN = 1 << 20, 16
"""JSON values a file may have in any case, and for each token. The same tokenizers have 8 values a token. A value takes
up to 100 bytes once it is parsed."""
_MOST_STEPS = 64
"""Steps of a normalizer, a pre-tokenizer, a post-processor or a decoder; known ones have up to 10."""
_MOST_GROWTH = 64
"""How many characters a part may make of one. The growths of successive replacements multiply."""
_LONGEST_TEXT_OF_A_TOKEN = 1 << 16
"""Characters that a token may become. The longest tokens in use have some hundred."""
_MOST_TEMPLATES = 16
_TEMPLATE_NAME = re.compile(r"[\w-]{1,64}")
_SHORTEST = 8
"""The shortest length in tokens at which texts may be cut: two texts of a token each, and their special tokens."""


def check_size(name: str, nbytes: int, vocabulary: int) -> None:
    """Raise `DeltaFormatError` for a file that is too large for a tokenizer of so many tokens."""
    most = _BYTES + _BYTES_A_TOKEN * vocabulary
    if nbytes > most:
        raise DeltaFormatError(
            f"the delta's {name} has {nbytes} bytes; at most {most} are accepted for a vocabulary of {vocabulary}"
        )


def check_content(name: str, data: bytes, vocabulary: int) -> None:
    """Check a tokenizer file that a delta brings, before a tokenizer is made of it.

    Args:
        vocabulary: how many rows the embedding has in which token ids are looked up.

    Raises:
        DeltaFormatError: the file is no JSON object, asks for code or other files, or would cost more memory or time
            than any tokenizer of this size does.
    """
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    most = _VALUES + _VALUES_A_TOKEN * vocabulary
    if values > most:
        raise DeltaFormatError(f"the delta's {name} holds over {most} values, too many for {vocabulary} tokens")
    try:
        # "model_max_length" is 10^30 where there is no limit
        plain = foreign_json.parse_any_size(data)
    except ValueError as error:
        raise DeltaFormatError(f"the delta's {name} is no JSON: {error}") from error
    if not isinstance(plain, dict):
        raise DeltaFormatError(f"the delta's {name} is no JSON object; refused")
    if asked := sorted(key for key in _PLACES_AND_CODE & plain.keys() if plain[key]):
        raise DeltaFormatError(f"the delta's {name} asks for code or files of its own ({asked[0]}); refused")
    with reading(f"the delta's {name}"):
        if name == "tokenizer.json":
            _check_steps(name, plain)
        else:
            _check_class(name, plain.get("tokenizer_class"))
            _check_chat_templates(name, plain.get("chat_template"))


def check_ids(encoder: Encoder, config: PretrainedConfig) -> None:
    """Check that a model of this config has a row for every id its tokenizer can give.

    Looking up a row that an embedding does not have raises an error on a CPU, and ends the process on a GPU.

    Raises:
        DeltaFormatError: a row is missing, or the tokenizer cuts texts so short that nothing fits.
    """
    if encoder.max_length < _SHORTEST:
        raise DeltaFormatError(
            f"the delta's tokenizer cuts texts at {encoder.max_length} tokens; expected room for {_SHORTEST} at least"
        )
    largest, largest_type = encoder.largest_ids
    rows, types = (getattr(config, key, None) for key in ("vocab_size", "type_vocab_size"))
    if isinstance(rows, int) and largest >= rows:
        raise DeltaFormatError(
            f"the delta's tokenizer gives ids up to {largest}, but its model has {rows} tokens; resize the embedding "
            "to the tokenizer before fine-tuning, or remove what was added to the tokenizer"
        )
    if isinstance(types, int) and types > 0 and largest_type >= types:
        raise DeltaFormatError(
            f"the delta's tokenizer gives segment {largest_type}, but its model has {types} segments"
        )


def _check_class(name: str, named: Any) -> None:
    """Refuse slow tokenizers by name: they are not served, and merely loading one may build tables of all Unicode."""
    found = getattr(transformers, named, None) if isinstance(named, str) else None
    if isinstance(found, type) and not issubclass(found, PreTrainedTokenizerFast) and found is not PreTrainedTokenizer:
        raise DeltaFormatError(f"the delta's {name} asks for a {named}, which is no fast tokenizer; refused")


def _check_chat_templates(name: str, found: Any) -> None:
    named = [{"name": "default", "template": found}] if isinstance(found, str) else found or []
    if not isinstance(named, list) or len(named) > _MOST_TEMPLATES:
        raise DeltaFormatError(f"the delta's {name} has a chat_template that is neither a text nor a list of a few")
    for one in named:
        label, text = (one.get("name"), one.get("template")) if isinstance(one, dict) else (None, None)
        if not (isinstance(label, str) and _TEMPLATE_NAME.fullmatch(label) and isinstance(text, str)):
            raise DeltaFormatError(f"the delta's {name} has a chat template without a plain name and a text; refused")
        if len(text) > MOST_CHARACTERS:
            raise DeltaFormatError(
                f"the delta's {name} has a chat template of {len(text)} characters; at most {MOST_CHARACTERS}"
            )


def _check_steps(name: str, plain: Mapping[str, Any]) -> None:
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        steps = list(_steps(plain.get(part)))
        if len(steps) > _MOST_STEPS:
            raise DeltaFormatError(f"the delta's {name} has a {part} of {len(steps)} steps; at most {_MOST_STEPS}")
        growth = prod(map(_growth, steps))
        if growth > _MOST_GROWTH:
            raise DeltaFormatError(
                f"the delta's {name} has a {part} that makes up to {growth:.0f} characters of one; at most "
                f"{_MOST_GROWTH} are accepted"
            )
    _check_decoding(name, plain)
    longest = (plain.get("model") or {}).get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > LONGEST_WORD:
        raise DeltaFormatError(f"the delta's {name} has words of {longest} characters; at most {LONGEST_WORD}")


def _check_decoding(name: str, plain: Mapping[str, Any]) -> None:
    """Refuse what makes the text of a single token costly: tokens are decoded one by one while a text is generated."""
    steps = list(_steps(plain.get("decoder")))
    if any(isinstance(pattern := step.get("pattern"), dict) and "Regex" in pattern for step in steps):
        raise DeltaFormatError(f"the delta's {name} has a decoder with a regular expression; expected a plain text")
    longest = max(map(len, _tokens(plain)), default=0)
    if longest * prod(map(_growth, steps)) > _LONGEST_TEXT_OF_A_TOKEN:
        raise DeltaFormatError(
            f"the delta's {name} has a token of {longest} characters, whose text may have more than "
            f"{_LONGEST_TEXT_OF_A_TOKEN}"
        )


def _tokens(plain: Mapping[str, Any]) -> Iterator[str]:
    vocabulary = (plain.get("model") or {}).get("vocab") or ()
    yield from (str(entry[0]) if isinstance(entry, list) and entry else str(entry) for entry in vocabulary)
    yield from (str(token.get("content")) for token in plain.get("added_tokens") or () if isinstance(token, dict))


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, including the steps of sequences. `foreign_json` has bounded the depth of the recursion."""
    if isinstance(part, list):
        for step in part:
            yield from _steps(step)
    elif isinstance(part, dict):
        yield part
        for inner in part.values():
            if isinstance(inner, list):
                yield from _steps([step for step in inner if isinstance(step, dict)])


def _growth(step: Mapping[str, Any]) -> float:
    """The most characters that a step can make of one."""
    content, pattern = step.get("content"), step.get("pattern")
    if step.get("type") == "Prepend":
        return 1.0 + len(str(step.get("prepend")))
    if step.get("type") != "Replace" or not isinstance(content, str):
        return 1.0
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(literal, str) and literal:
        return max(1.0, len(content) / len(literal))
    return 1.0 + len(content)  # a regular expression may match the empty text between any two characters
