"""The tools of a chat as OpenAI's clients send them, and which of them the answer may or must call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from serving.api.unserved import WithForeignFields
from serving.errors import InvalidInputError
from serving.function_calls.functions import Function, Functions
from serving.incoming import Incoming

MOST_TOOLS = 128
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
"""The parameters of a function that names none."""


class FunctionTold(Incoming):
    """A function that an answer may call."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")] = Field(
        description="letters, digits, and _ - . : /"
    )
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="the JSON schema of its arguments, an object")
    strict: bool | None = Field(None, description="without effect: the schema of a forced call is always enforced")


class Tool(WithForeignFields):
    """A tool: a function."""

    WITHOUT_EFFECT = frozenset({"cache_control"})

    type: Literal["function"]
    function: FunctionTold

    def plain(self) -> dict[str, Any]:
        """As chat templates expect it."""
        told = self.function
        beside = {"description": told.description, "parameters": told.parameters}
        return {
            "type": "function",
            "function": {"name": told.name, **{k: v for k, v in beside.items() if v is not None}},
        }


class FunctionName(Incoming):
    name: str


class NamedTool(Incoming):
    """The function that the answer must call."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(Incoming):
    """Some of the tools, and whether the answer must call one of them."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool] = Field(min_length=1, max_length=MOST_TOOLS)


class AllowedToolsChoice(Incoming):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _known(plain: Any) -> Any:
    """One refusal, of what was meant: a union would refuse by every form."""
    if plain in ("none", "auto", "required"):
        return plain
    kind = plain.get("type") if isinstance(plain, dict) else None
    if kind == "function" or (kind is None and isinstance(plain, dict) and "function" in plain):
        return NamedTool.model_validate(plain)
    if kind == "allowed_tools":
        return AllowedToolsChoice.model_validate(plain)
    raise PydanticCustomError(
        "tool_choice", "expected none, auto, required, or an object of the type function or allowed_tools"
    )


ToolChoice = Annotated[Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice, BeforeValidator(_known)]
Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS)]


def functions_of(tools: Sequence[Tool], choice: ToolChoice, several: bool) -> Functions | None:
    """What an answer may or must call; None: nothing.

    Raises:
        InvalidInputError: the choice names a tool that is not there, or two tools have one name.
    """
    names = [tool.function.name for tool in tools]
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise InvalidInputError(f"found two tools named {twice!r}; give each a name of its own", at="tools")
    chosen, forced = _chosen(choice, names)
    if chosen is None:
        return None
    if not tools:
        raise InvalidInputError("found no tools beside it; send the tools that may be called", at="tool_choice")
    if missing := next((name for name in chosen if name not in names), None):
        raise InvalidInputError(f"found {missing[:128]!r}, which is none of the tools", at="tool_choice")
    some = [_function(tool, place) for place, tool in enumerate(tools) if tool.function.name in chosen]
    return Functions(some, forced, several and not isinstance(choice, NamedTool), "tool_choice" if forced else "tools")


def _chosen(choice: ToolChoice, names: Sequence[str]) -> tuple[Sequence[str] | None, bool]:
    """The names of what may be called, None for nothing, and whether one of them must be."""
    if isinstance(choice, NamedTool):
        return [choice.function.name], True
    if isinstance(choice, AllowedToolsChoice):
        told = choice.allowed_tools
        return [tool.function.name for tool in told.tools], told.mode == "required"
    if choice == "none" or (choice == "auto" and not names):
        return None, False
    return names, choice == "required"


def _function(tool: Tool, place: int) -> Function:
    told = tool.function
    parameters = _NOTHING if told.parameters is None else told.parameters
    return Function(told.name, parameters, f"tools.{place}.function.parameters")
