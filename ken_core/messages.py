"""Messages of chats as templates expect them, and what a template would leave out of a prompt without a word."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from ken_core.errors import TemplateError

if TYPE_CHECKING:  # needs transformers, and reading does not
    from ken_core.chat_template import ChatTemplate

Messages = Sequence[Mapping[str, Any]]


class LeftOutError(TemplateError):
    """A chat template does not show a part of a chat. The message goes on behind "the task's".

    Attributes:
        at: the part, such as ``tools`` or ``messages.2.tool_calls``.
    """

    def __init__(self, message: str, at: str) -> None:
        super().__init__(message)
        self.at = at


def arguments_of(arguments: Any) -> Any:
    """Arguments of a call as an object, which OpenAI's API has as the object's JSON; what is no JSON stays a text."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments


def check_shown(
    template: ChatTemplate,
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None,
    render: Callable[[Messages], str],
) -> None:
    """Check that a template shows tools, their calls and their results.

    Args:
        render: makes a prompt of messages.

    Raises:
        LeftOutError: it leaves a part out.
        TemplateError: as `ChatTemplate.render`.
    """
    if tools and not template.mentions("tools", tools):
        raise LeftOutError("chat template shows no tools, so its model would not know of them", at="tools")
    for place, message in enumerate(messages):
        if message.get("tool_calls") and not template.mentions("tool_calls", tools):
            raise LeftOutError("chat template shows no calls of tools", at=f"messages.{place}.tool_calls")
    if not any(template.mentions(role, tools) for role in ("'tool'", '"tool"')):
        _check_results(messages, render)


def _check_results(messages: Messages, render: Callable[[Messages], str]) -> None:
    """Of a template that does not know the role of results, which may show them all the same.

    Results may be words that the chat has anyway, so others are looked for in their places.
    """
    marks = {
        place: f"result{secrets.token_hex(12)}"
        for place, message in enumerate(messages)
        if message.get("role") == "tool"
    }
    if not marks:
        return
    marked = [
        {**message, "content": marks[place]} if place in marks else message for place, message in enumerate(messages)
    ]
    rendered = render(marked)
    for place, mark in marks.items():
        if mark not in rendered:
            raise LeftOutError("chat template leaves out results of tools", at=f"messages.{place}.role")
