"""Prompts as requests have them become token ids of their task's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ken_core.chat_template import ChatTemplate
from ken_core.errors import TemplateError, TextTooLongError
from ken_core.messages import LeftOutError, check_shown
from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError, TooLargeError
from serving.generation.query import Chat, Prompt
from serving.pipelines.base import refusing_what_its_tokenizer_cannot_read
from serving.pipelines.token_ids import TokenIds, check_range
from serving.tiers.loaded import Loaded
from serving.workers.steps import Steps

_INSTEAD = {
    "tools": "describe what you want in a message, and send a response_format in their place",
    "tool_calls": "send what was called as a message's content",
    "role": "send them as a message of the user",
}
"""What to do about a part of a chat that the template leaves out."""


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
    template = encoder.chat
    try:
        check_shown(template, chat.messages, chat.tools, lambda some: _of(replace(chat, messages=some), template))
        return _of(chat, template)
    except LeftOutError as error:
        instead = _INSTEAD[error.at.rpartition(".")[2]]
        raise InvalidInputError(f"the task's {error}; {instead}", at=error.at) from error
    except TemplateError as error:
        raise InvalidInputError(str(error), at="messages") from error


def _of(chat: Chat, template: ChatTemplate) -> str:
    return template.render(
        chat.messages,
        chat.tools,
        opens_answer=chat.opens_answer,
        continues_last=chat.continues_last,
        arguments=chat.arguments,
    )
