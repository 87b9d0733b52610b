"""Files of text that a language model learns, in three forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ken_core.errors import DataError
from ken_core.language_examples import (
    Completion,
    Conversation,
    Text,
    is_labelled,
    key_of,
    read_language_examples,
)

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def written(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_the_fields_of_the_first_row_say_the_form(tmp_path: Path) -> None:
    assert read_language_examples(written(tmp_path, {"text": "a", "id": 1}, {"text": "b"})) == [Text("a"), Text("b")]
    completions = [{"prompt": "a", "completion": "b"}, {"prompt": "", "completion": " c"}]
    assert read_language_examples(written(tmp_path, *completions)) == [Completion("a", "b"), Completion("", " c")]
    tools = [{"type": "function", "function": {"name": "look"}}]
    chats = written(tmp_path, {"messages": CHAT}, "", {"messages": CHAT, "tools": tools})
    found = read_language_examples(chats)
    assert found == [Conversation(CHAT), Conversation(CHAT, tools)]
    assert [example.where for example in found] == [f"{chats}, line 1", f"{chats}, line 3"]


def test_csv_has_texts_and_completions(tmp_path: Path) -> None:
    path = written(tmp_path, "prompt,completion,id", 'a,"b, and c",1', name="data.csv")
    assert read_language_examples(path) == [Completion("a", "b, and c")]
    assert read_language_examples(written(tmp_path, "id\ttext", "1\ta b", name="data.tsv")) == [Text("a b")]
    with pytest.raises(DataError, match="write chats as JSON lines"):
        read_language_examples(written(tmp_path, "messages", "a", name="data.csv"))


def test_texts_of_a_message_are_joined_as_the_server_joins_them(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = read_language_examples(written(tmp_path, {"messages": [{"role": "user", "content": parts}, CHAT[1]]}))
    assert found == [Conversation([{"role": "user", "content": "a\nb"}, CHAT[1]])]


@pytest.mark.parametrize("calls", ["f", [{}], [{"function": "f"}], [{"function": {}}], [3]])
def test_calls_of_another_form_are_refused(calls: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: found other tool_calls than"):
        read_language_examples(written(tmp_path, {"messages": [*CHAT, {"role": "assistant", "tool_calls": calls}]}))


def test_a_chat_that_is_nested_too_deeply_is_named_by_its_line(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    (example,) = read_language_examples(written(tmp_path, {"messages": [{**CHAT[0], "field": deep}, CHAT[1]]}))
    with pytest.raises(DataError, match="line 1: it is nested too deeply"):
        key_of(example)


def test_labels_make_a_classifiers_data(tmp_path: Path) -> None:
    assert is_labelled(written(tmp_path, {"text": "a", "label": "x"}))
    assert is_labelled(written(tmp_path, "label,text", "x,a", name="data.csv"))
    assert not is_labelled(written(tmp_path, {"text": "a"}))
    with pytest.raises(DataError, match="holds no examples"):
        is_labelled(written(tmp_path, ""))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"text": "a"}, {"text": 3}], r"line 2: found int as 'text', expected a string"),
        ([{"text": "a"}, {"prompt": "a", "completion": "b"}], r"line 2: found none as 'text'"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}], r"line 2: the completion is empty"),
        ([{"prompt": "a"}], r"line 1: found the fields prompt; expected text and label for a classifier"),
        ([{}], r"line 1: found the fields none"),
        ([{"messages": CHAT}, {"messages": "a"}], r"line 2: expected \{\"messages\""),
        ([{"messages": CHAT}, {"messages": [{"content": "a"}]}], r"line 2: expected \{\"messages\""),
        ([{"messages": CHAT}, {"messages": CHAT[:1]}], r"line 2: no message has the role assistant"),
        ([{"messages": CHAT}, {"messages": CHAT[1:]}], r"line 2: the first message has the role assistant"),
        ([{"messages": CHAT, "tools": {}}], r"line 1: found tools that are no list"),
        (["{"], r"line 1: expected a JSON object"),
        (
            [{"prompt": CHAT[:1], "completion": CHAT[1:]}],
            r"line 1: found list as 'completion', .* goes into one field, messages",
        ),
        ([{"messages": [*CHAT, {"role": "user", "content": 3}]}], r"line 1: found a message whose content is int"),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}, *CHAT]}], r"line 1: .* content is list"),
    ],
)
def test_a_row_of_another_form_is_refused_naming_its_line(tmp_path: Path, rows: list[Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_language_examples(written(tmp_path, *rows))
