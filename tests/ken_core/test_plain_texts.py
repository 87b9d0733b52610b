"""Texts of any task from a file, as one text each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ken_core import open_tuned
from ken_core.errors import DataError
from ken_core.language_examples import Completion, Conversation
from ken_core.plain_texts import plain_texts, read_given, same_key
from tests.chat_templates import INSTRUCTIONS
from tests.tiny_language_models import write_chat_tokenizer, write_language_model

CHAT = [{"role": "user", "content": "how far?"}, {"role": "assistant", "content": "far"}]


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language") / "model")


def test_texts_are_read_with_their_labels_and_others_without(tmp_path: Path) -> None:
    assert read_given(written(tmp_path, {"text": "a", "label": "x"})) == (["a"], ["x"])
    assert read_given(written(tmp_path, {"text": "a", "messages": CHAT})) == (["a"], None)
    assert read_given(written(tmp_path, {"prompt": "a", "completion": "b"})) == ([Completion("a", "b")], None)


def test_completions_and_chats_become_what_the_model_is_given(folder: Path, tmp_path: Path) -> None:
    tuned = open_tuned(str(folder))
    given, _ = read_given(written(tmp_path, {"messages": CHAT}))
    assert plain_texts(tuned, given) == [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(CHAT, tokenize=False)
    ]
    assert plain_texts(tuned, [Completion("how far? ", "far"), "a", ("a", "b")]) == ["how far? far", "a", ("a", "b")]


def test_what_says_the_same_has_one_key() -> None:
    assert same_key(Completion("a", "b", "line 1")) == same_key(Completion("a", "b", "line 2"))
    assert same_key(Conversation(CHAT)) == same_key(Conversation([dict(reversed(m.items())) for m in CHAT]))
    assert same_key(Completion("a", "b")) != same_key(Completion("ab", ""))
    assert same_key("a") == "a"


def test_what_cannot_be_a_text_is_named(folder: Path, tiny_tuned: dict[str, Path], tmp_path: Path) -> None:
    given, _ = read_given(written(tmp_path, {"prompt": "a", "completion": "b"}))
    with pytest.raises(DataError, match=r"line 1: found what a language model learns, and .* is a .*ForSequenceClass"):
        plain_texts(open_tuned(str(tiny_tuned["mood"])), given)
    plain = write_language_model(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="line 1: found a chat, and the tokenizer has no chat template"):
        plain_texts(open_tuned(str(plain)), [Conversation(CHAT, where="line 1")])
    strict = write_language_model(tmp_path / "strict")
    write_chat_tokenizer(strict, INSTRUCTIONS)
    with pytest.raises(DataError, match=r"line 7: .*refuses the messages"):
        plain_texts(open_tuned(str(strict)), [Conversation([CHAT[0], *CHAT], where="line 7")])
