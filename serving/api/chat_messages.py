"""The messages of a chat as OpenAI's clients send them, and what a chat template makes its prompt of."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from ken_core.messages import arguments_of
from serving.api.unserved import WithForeignFields

Role = Literal["system", "developer", "user", "assistant", "tool"]

MOST_MESSAGES = 4096
MOST_PARTS = 4096
"""Parts of contents, and calls, in all messages of a chat. To read so many takes 0.05 s."""


class TextPart(WithForeignFields):
    """A part of a message's content."""

    WITHOUT_EFFECT = frozenset({"annotations", "cache_control", "extras", "id", "index", "prompt_cache_breakpoint"})

    type: Literal["text"] = "text"
    text: str


def _parts(plain: Any) -> Any:
    """One refusal, of what was meant: a union would refuse by every form. Parts that are no text have a refusal of
    their own."""
    if not isinstance(plain, list):
        return plain
    for part in plain:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind != "text":
            raise PydanticCustomError(
                "not_served", "found a part of type '{kind}', and only text is taken", {"kind": kind[:40]}
            )
    return _PARTS.validate_python(plain)


_PARTS = TypeAdapter(list[TextPart])


class FunctionCall(WithForeignFields):
    """The function that a message of the assistant called."""

    WITHOUT_EFFECT = frozenset({"parsed_arguments"})
    ONLY_AT = MappingProxyType({"description": ()})

    name: str
    arguments: str | dict[str, Any] = Field("{}", description="an object, or its JSON as a text")


class ToolCall(WithForeignFields):
    """A call that a message of the assistant made."""

    WITHOUT_EFFECT = frozenset({"cache_control", "provider_specific_fields"})
    ONLY_AT = MappingProxyType({"extra_content": ()})

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None

    def plain(self) -> dict[str, Any]:
        """As templates expect it: the arguments are an object."""
        called = self.function
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": called.name, "arguments": arguments_of(called.arguments)},
        }


class Message(WithForeignFields):
    """One message. Clients send an answer of the assistant again as they got it."""

    WITHOUT_EFFECT = frozenset(
        {"annotations", "cache_control", "parsed", "provider_specific_fields", "reasoning_details"}
    )
    ONLY_AT = MappingProxyType({"audio": (), "function_call": (), "images": ([],), "thinking_blocks": ([],)})

    role: Role
    content: Annotated[str | list[TextPart], BeforeValidator(_parts)] | None = Field(
        None, description="a text, or parts of it, which are joined with line breaks"
    )
    name: str | None = None
    tool_calls: list[ToolCall] | None = Field(None, description="that a message of the assistant made")
    tool_call_id: str | None = Field(None, description="the call that a message of a tool answers")
    reasoning_content: str | None = Field(None, description="what the model thought, for templates that show it")
    reasoning: str | None = Field(None, description="the same under another name")
    refusal: str | None = None

    def plain(self) -> dict[str, Any]:
        """As templates expect it."""
        beside = {
            "name": self.name,
            "tool_calls": [call.plain() for call in self.tool_calls] if self.tool_calls else None,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content if self.reasoning is None else self.reasoning,
        }
        return {"role": self.role, "content": self._text(), **{k: v for k, v in beside.items() if v is not None}}

    def _text(self) -> str:
        if self.content is None:
            return self.refusal or ""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


def _bounded(plain: Any) -> Any:
    """What is counted here takes far longer to read."""
    if isinstance(plain, list):
        messages = [message for message in plain if isinstance(message, Mapping)]
        found = [message.get(name) for message in messages for name in ("content", "tool_calls")]
        parts = sum(len(part) for part in found if isinstance(part, list))
        if parts > MOST_PARTS:
            raise PydanticCustomError(
                "too_many",
                "found {parts} parts and calls in all messages; at most {most} are taken",
                {"parts": parts, "most": MOST_PARTS},
            )
    return plain


Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES), BeforeValidator(_bounded)]
