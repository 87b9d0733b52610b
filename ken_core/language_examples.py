"""Reading text that a language model learns from files: whole texts, prompts with their completions, or chats.

The fields of the first row say which: ``text``; ``prompt`` and ``completion``; or ``messages``, and ``tools`` where a
chat has some. CSV and TSV files have no room for chats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ken_core.errors import DataError
from ken_core.messages import arguments_of
from ken_core.records import Record, Records, read_records

ANSWERS = "assistant"
"""The role whose messages are learned."""


@dataclass(frozen=True)
class Text:
    """A whole text, all of which is learned.

    Attributes:
        where: its place, for messages.
    """

    text: str
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Completion:
    """A prompt and what comes after it, which is learned."""

    prompt: str
    completion: str
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them. The assistant's are learned."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    where: str = field(default="", compare=False)


LanguageExample = Text | Completion | Conversation


def is_labelled(path: Path) -> bool:
    """Whether a file holds labelled text, for a classifier. Raises `DataError` if it cannot be read, or is empty."""
    records = read_records(path)
    return "label" in _names(records)


def has_no_text(path: Path) -> bool:
    """Whether a file holds completions or chats alone. Raises `DataError` if it cannot be read, or is empty."""
    names = _names(read_records(path))
    return "text" not in names and ("messages" in names or names >= {"prompt", "completion"})


def key_of(example: LanguageExample) -> str:
    """The same for examples that say the same."""
    if isinstance(example, Text):
        parts: object = [example.text]
    elif isinstance(example, Completion):
        parts = [example.prompt, example.completion]
    else:
        parts = {"messages": [dict(m) for m in example.messages], "tools": [dict(t) for t in example.tools or ()]}
    try:
        return orjson.dumps(parts, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        raise DataError(f"{example.where}: it is nested too deeply; at most about 250 levels are taken") from None


def read_language_examples(path: Path) -> list[LanguageExample]:
    """Read text that a language model learns; all rows have the form of the first.

    Raises:
        DataError: the file is missing or empty, or a row has another form; the message names its line.
    """
    records = read_records(path)
    names = _names(records)
    if "messages" in names:
        if records.header is not None:
            raise DataError(f"{path} has a field of messages, which is a list; write chats as JSON lines")
        return [_conversation(path, record) for record in records.rows]
    if names >= {"prompt", "completion"}:
        return [_completion(path, record) for record in records.rows]
    if "text" in names:
        return [Text(_string(path, record, "text"), _where(path, record)) for record in records.rows]
    raise DataError(
        f"{_where(path, records.rows[0])}: found the fields {', '.join(sorted(names))[:200] or 'none'}; expected text "
        "and label for a classifier, and for a language model text, or prompt and completion, or messages"
    )


def _names(records: Records) -> set[str]:
    if not records.rows:
        raise DataError(f"{records.path} holds no examples")
    return set(records.rows[0].fields)


def _completion(path: Path, record: Record) -> Completion:
    completion = _string(path, record, "completion")
    if not completion:
        raise DataError(f"{_where(path, record)}: the completion is empty, so there is nothing to learn")
    return Completion(_string(path, record, "prompt"), completion, _where(path, record))


def _conversation(path: Path, record: Record) -> Conversation:
    messages, tools, where = record.fields.get("messages"), record.fields.get("tools"), _where(path, record)
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise DataError(
            f'{where}: expected {{"messages": [{{"role": "user", "content": "..."}}, ...]}}; each message has a role'
        )
    if not any(message["role"] == ANSWERS for message in messages):
        raise DataError(f"{where}: no message has the role {ANSWERS}, so there is nothing to learn")
    if messages[0]["role"] == ANSWERS:
        raise DataError(f"{where}: the first message has the role {ANSWERS}; a chat begins with what it answers")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise DataError(f"{where}: found tools that are no list of objects")
    return Conversation([_as_served(message, where) for message in messages], tools, where)


def _as_served(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A message as the server gives it to a template: its content is a text, and arguments of calls are objects."""
    made = {**message, "content": _text_of(message, where)}
    if not message.get("tool_calls"):
        return {key: value for key, value in made.items() if key != "tool_calls"}
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        raise DataError(
            f'{where}: found other tool_calls than [{{"function": {{"name": "...", "arguments": {{...}}}}}}, ...]'
        )
    return {**made, "tool_calls": list(map(_called, calls))}


def _called(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call["function"]
    return {
        "type": "function",
        **call,
        "function": {**function, "arguments": arguments_of(function.get("arguments", "{}"))},
    }


def _is_call(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("function"), dict) and "name" in found["function"]


def _text_of(message: Mapping[str, Any], where: str) -> str:
    """A message's content as one text; several are joined as the server joins them."""
    content = message.get("content")
    if content is None:
        refusal = message.get("refusal")
        return refusal if isinstance(refusal, str) else ""
    if isinstance(content, str):
        return content
    texts = (
        [part.get("text") if isinstance(part, dict) else None for part in content] if isinstance(content, list) else []
    )
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: found a message whose content is {type(content).__name__}; expected a text")
    return "\n".join(map(str, texts))


def _is_message(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("role"), str)


def _string(path: Path, record: Record, key: str) -> str:
    value = record.fields.get(key)
    if isinstance(value, str):
        return value
    found = type(value).__name__ if key in record.fields else "none"
    hint = "; a list of messages goes into one field, messages, with the answers in it" if found == "list" else ""
    raise DataError(f"{_where(path, record)}: found {found} as {key!r}, expected a string{hint}")


def _where(path: Path, record: Record) -> str:
    return f"{path}, line {record.line}"
