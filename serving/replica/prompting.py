"""Prompts as requests have them become token ids of their task's tokenizer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ken_core.chat_template import ChatTemplate
from ken_core.errors import TemplateError, TextTooLongError
from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError, TooLargeError
from serving.generation.query import Chat, Prompt
from serving.pipelines.base import refusing_what_its_tokenizer_cannot_read
from serving.pipelines.token_ids import TokenIds, check_range
from serving.tiers.loaded import Loaded
from serving.workers.steps import Steps


@dataclass(frozen=True)
class Plain:
    """A prompt as text, and whether the tokenizer adds its special tokens to it."""

    text: str
    special: bool


def render(prompts: Sequence[Prompt], loaded: Loaded) -> Steps[list[Plain | TokenIds]]:
    """Chats made texts by the task's template, one a step."""
    made: list[Plain | TokenIds] = []
    for prompt in prompts:
        if isinstance(prompt, Chat):
            yield 1
            made.append(Plain(_rendered(prompt, loaded.spec.encoder), special=False))
        else:
            made.append(prompt if isinstance(prompt, TokenIds) else Plain(prompt, special=True))
    return made


def encode(prompts: Sequence[Plain | TokenIds], loaded: Loaded) -> Steps[list[list[int]]]:
    """Token ids of prompts."""
    found = []
    for place, prompt in enumerate(prompts):
        yield len(prompt.text) if isinstance(prompt, Plain) else len(prompt.ids)
        with refusing_what_its_tokenizer_cannot_read():
            ids = _ids(prompt, f"prompts.{place}", loaded)
        if not ids:
            raise InvalidInputError("there is no token in it; send a text that has one", at=f"prompts.{place}")
        found.append(ids)
    return found


def _ids(prompt: Plain | TokenIds, where: str, loaded: Loaded) -> list[int]:
    if isinstance(prompt, TokenIds):
        check_range(prompt.ids, where, loaded.spec)
        return list(prompt.ids)
    try:
        return loaded.spec.encoder.prompt(prompt.text, prompt.special)
    except TextTooLongError as error:
        raise TooLargeError(str(error), at=where) from None


def _rendered(chat: Chat, encoder: Encoder) -> str:
    if encoder.chat is None:
        raise InvalidInputError("the task has no chat template; send a prompt in place of messages", at="messages")
    try:
        _check_shown(chat, encoder.chat)
        rendered = _of(chat, encoder.chat)
        _check_results(chat, encoder.chat)
    except TemplateError as error:
        raise InvalidInputError(str(error), at="messages") from error
    return rendered


def _of(chat: Chat, template: ChatTemplate) -> str:
    return template.render(
        chat.messages,
        chat.tools,
        opens_answer=chat.opens_answer,
        continues_last=chat.continues_last,
        arguments=chat.arguments,
    )


def _check_results(chat: Chat, template: ChatTemplate) -> None:
    """Refuse results of tools that a template which does not know their role leaves out.

    Results may be words that the chat has anyway, so others are looked for in their places.
    """
    places = [place for place, message in enumerate(chat.messages) if message.get("role") == "tool"]
    if not places or any(template.mentions(role, chat.tools) for role in ("'tool'", '"tool"')):
        return
    marks = {place: f"result{secrets.token_hex(12)}" for place in places}
    messages = [
        {**message, "content": marks[place]} if place in marks else message
        for place, message in enumerate(chat.messages)
    ]
    rendered = _of(replace(chat, messages=messages), template)
    for place, mark in marks.items():
        if mark not in rendered:
            raise InvalidInputError(
                "the task's chat template leaves out results of tools; send them as a message of the user",
                at=f"messages.{place}.role",
            )


def _check_shown(chat: Chat, template: ChatTemplate) -> None:
    """Refuse what a template would leave out of the prompt without a word."""
    if chat.tools and not template.mentions("tools", chat.tools):
        raise InvalidInputError(
            "the task's chat template shows no tools, so its model would not know of them; describe what you want in "
            "a message, and send a response_format in their place",
            at="tools",
        )
    for place, message in enumerate(chat.messages):
        if message.get("tool_calls") and not template.mentions("tool_calls", chat.tools):
            raise InvalidInputError(
                "the task's chat template shows no calls of tools; send what was called as a message's content",
                at=f"messages.{place}.tool_calls",
            )
