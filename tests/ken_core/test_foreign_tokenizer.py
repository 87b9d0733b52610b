"""Tokenizer files of a delta that would make the text of a token costly are refused before a tokenizer is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ken_core.errors import DeltaFormatError
from ken_core.foreign_tokenizer import check_content
from tests.tiny_language_models import write_chat_tokenizer
from tests.tiny_tokenizers import WRITERS


def content(folder: Path, change: Callable[[dict[str, Any]], object] = lambda plain: None) -> bytes:
    write_chat_tokenizer(folder)
    plain = json.loads((folder / "tokenizer.json").read_bytes())
    change(plain)
    return json.dumps(plain).encode()


def decoding_with(*steps: Mapping[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda plain: plain.update(decoder={"type": "Sequence", "decoders": list(steps)})


def with_token(text: str, *steps: Mapping[str, Any]) -> Callable[[dict[str, Any]], object]:
    def change(plain: dict[str, Any]) -> None:
        plain["model"]["vocab"][text] = 399
        if steps:
            decoding_with(*steps)(plain)

    return change


SLOW = {"type": "Replace", "pattern": {"Regex": "(a|aa)+b"}, "content": ""}
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64}
USUAL = (
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (decoding_with(SLOW), "has a decoder with a regular expression"),
        (lambda plain: plain.update(decoder=SLOW), "has a decoder with a regular expression"),
        (with_token("a" * 100_000), "has a token of 100000 characters"),
        (with_token("a" * 2_000, GROWING), "has a token of 2000 characters, whose text may have more than 65536"),
        (
            lambda plain: plain["added_tokens"].append({"id": 400, "content": "b" * 70_000}),
            "has a token of 70000 characters",
        ),
        (
            lambda plain: plain.update(model={"type": "Unigram", "vocab": [["c" * 80_000, -1.0]]}),
            "has a token of 80000 characters",
        ),
    ],
)
def test_a_token_whose_text_is_costly_is_refused(change: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(DeltaFormatError, match=match):
        check_content("tokenizer.json", content(tmp_path, change), 400)


def test_usual_decoders_and_tokens_are_accepted(tmp_path: Path) -> None:
    check_content("tokenizer.json", content(tmp_path), 400)
    check_content("tokenizer.json", content(tmp_path, with_token("=" * 512, *USUAL)), 400)
    for kind, write in WRITERS.items():
        write(tmp_path / kind)
        check_content("tokenizer.json", (tmp_path / kind / "tokenizer.json").read_bytes(), 400)


def test_the_tokenizers_of_real_bases_are_accepted(minilm: Path) -> None:
    check_content("tokenizer.json", (minilm / "tokenizer.json").read_bytes(), 30_522)
