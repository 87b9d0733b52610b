"""A task's chat template: messages become the prompt that its model was trained on, as Transformers renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from ken_core.errors import TemplateError
from ken_core.rendering.renderers import RENDERERS

Message = Mapping[str, Any]
MOST_CHARACTERS = 1 << 18
"""Of a template. The longest ones in use have 20,000."""
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands behind the message that is continued, until the prompt is cut there. Ends with a space, so that a template
which strips messages shows that it does."""
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients send what a model thought; templates read the first two."""
_FIXED = ("messages", "tools", "add_generation_prompt")
"""Variables that no request's arguments may replace."""


@dataclass(frozen=True)
class ChatTemplate:
    """The templates of a tokenizer.

    Attributes:
        named: templates by name; a tokenizer's only one is called ``default``.
        special: special tokens by their names, such as ``bos_token``, which templates know as variables.
    """

    named: Mapping[str, str]
    special: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
        """A loaded tokenizer's templates; None where it has none."""
        found = tokenizer.chat_template
        if not found:
            return None
        return cls({"default": found} if isinstance(found, str) else dict(found), dict(tokenizer.special_tokens_map))

    def mentions(self, variable: str, tools: Sequence[Mapping[str, Any]] | None = None) -> bool:
        """Whether the template that would be rendered has a word anywhere, such as the name of a variable.

        Raises:
            TemplateError: as `render` does, where there is no such template.
        """
        return variable in self.text(tools)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        opens_answer: bool = True,
        continues_last: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for messages; the same as `apply_chat_template(..., tokenize=False)` of Transformers.

        This waits for another process, so an event loop should leave it to a thread.

        Args:
            messages: plain JSON, each with a ``role`` and usually a ``content``.
            tools: plain JSON that describes functions.
            opens_answer: whether the prompt ends with the beginning of the assistant's answer.
            continues_last: whether the prompt ends with the last message's content, to be continued.
            arguments: further variables of the template.

        Raises:
            TemplateError: the template raised or fails, takes too much time or memory, or has no default among several
                names; or the arguments contradict each other.
        """
        text = self.text(tools)
        chat = [_as_templates_read(message, text) for message in messages]
        _check(chat, opens_answer, continues_last, arguments or {})
        last = _tagged(chat, text) if continues_last else ""
        variables = {
            **self.special,
            "documents": None,
            **(arguments or {}),
            "messages": chat,
            "tools": tools,
            "add_generation_prompt": opens_answer,
        }
        rendered = RENDERERS.render(text, variables)
        return _cut_at_tag(rendered, last) if continues_last else rendered

    def text(self, tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The template that `render` takes.

        Raises:
            TemplateError: the tokenizer has several, and none is the default.
        """
        if tools is not None and "tool_use" in self.named:
            return self.named["tool_use"]
        if "default" not in self.named:
            raise TemplateError(
                f"the task's tokenizer has chat templates named {', '.join(sorted(self.named))}, and none is the "
                "default; publish the task with one named default"
            )
        return self.named["default"]


def _as_templates_read(message: Message, template: str) -> dict[str, Any]:
    """A message without nulls, with what the model thought under both names that templates read. To a template that
    does not know developers, a developer's message is the system's, which is what it replaces at OpenAI."""
    kept = {key: value for key, value in message.items() if value is not None}
    if kept.get("role") == "developer" and "developer" not in template:
        kept["role"] = "system"
    thought = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if thought is None else {"thinking": thought, **kept, "reasoning_content": thought}


def _check(chat: Sequence[Message], opens_answer: bool, continues_last: bool, arguments: Mapping[str, Any]) -> None:
    if not chat:
        raise TemplateError("found no message; expected at least one")
    if taken := sorted(set(_FIXED) & arguments.keys()):
        raise TemplateError(f"found {taken[0]!r} among the template's arguments; it is given by itself")
    if opens_answer and continues_last:
        raise TemplateError(
            "a prompt either opens an answer (add_generation_prompt) or continues the last message "
            "(continue_final_message); ask for one of them"
        )


def _tagged(chat: list[dict[str, Any]], template: str) -> str:
    """Put the tag behind the last message's text, in place, and return that text."""
    content = chat[-1].get("content")
    if content is None or "content" not in template:
        raise TemplateError("the last message has no content that the task's chat template shows, so no text to go on")
    if isinstance(content, str):
        chat[-1]["content"] = content + _TAG
        return content
    blocks = [dict(block) if isinstance(block, Mapping) else block for block in content]
    for block in reversed(blocks):
        if isinstance(block, dict) and isinstance(text := block.get("text"), str):
            block["text"] = text + _TAG
            chat[-1]["content"] = blocks
            return text
    raise TemplateError("the last message has no text to go on")


def _cut_at_tag(rendered: str, last: str) -> str:
    at = rendered.rfind(_TAG.strip())
    if at < 0 or last.strip() not in rendered:
        raise TemplateError("the task's chat template does not show the last message as it is, so nothing can go on")
    return rendered[:at] if rendered.startswith(_TAG, at) else rendered[:at].rstrip()
