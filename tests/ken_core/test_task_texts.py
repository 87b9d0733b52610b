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
from ken_core.task_texts import inputs_of, read_given, same_key
from ken_core.tokenization import Encoded, Encoder
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


def test_completions_and_chats_become_the_rows_that_the_model_learns(folder: Path, tmp_path: Path) -> None:
    tuned = open_tuned(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given, _ = read_given(written(tmp_path, {"messages": CHAT}))
    (chat,) = inputs_of(tuned, given)
    assert isinstance(chat, Encoded)
    assert chat.ids == tokenizer.apply_chat_template(CHAT, return_dict=False)
    pair, text, texts = inputs_of(tuned, [Completion("how far?", " far"), "a", ("a", "b")])
    assert isinstance(pair, Encoded)
    assert pair.ids == [*tokenizer("how far? far")["input_ids"], tokenizer.eos_token_id]
    assert (text, texts) == ("a", ("a", "b"))
    encoder = Encoder(tuned, tuned.config, {})
    assert encoder.rows(["far", chat, "a"]) == [*encoder(["far"]), chat, *encoder(["a"])]


def test_what_says_the_same_has_one_key() -> None:
    assert same_key(Completion("a", "b", "line 1")) == same_key(Completion("a", "b", "line 2"))
    assert same_key(Conversation(CHAT)) == same_key(Conversation([dict(reversed(m.items())) for m in CHAT]))
    assert same_key(Completion("a", "b")) != same_key(Completion("ab", ""))
    assert same_key("a") == "a"


def test_what_cannot_be_a_text_is_named(folder: Path, tiny_tuned: dict[str, Path], tmp_path: Path) -> None:
    given, _ = read_given(written(tmp_path, {"prompt": "a", "completion": "b"}))
    with pytest.raises(DataError, match=r"line 1: found what a language model learns, and .* is a .*ForSequenceClass"):
        inputs_of(open_tuned(str(tiny_tuned["mood"])), given)
    plain = write_language_model(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="has no chat template; write the examples with prompt and completion"):
        inputs_of(open_tuned(str(plain)), [Conversation(CHAT, where="line 1")])
    strict = write_language_model(tmp_path / "strict")
    write_chat_tokenizer(strict, INSTRUCTIONS)
    with pytest.raises(DataError, match=r"line 7: .*refuses the messages"):
        inputs_of(open_tuned(str(strict)), [Conversation([CHAT[0], *CHAT], where="line 7")])
