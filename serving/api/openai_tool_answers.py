"""Answers of chats that may call functions, in the forms of OpenAI's protocol."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from serving.api.failures import Shape
from serving.api.generating import Answering, Continuation
from serving.api.openai import shape
from serving.api.openai_answers import ChatForm, Wanted
from serving.errors import InternalError
from serving.function_calls.functions import Functions
from serving.function_calls.reading import Called, Part, Reader, Said, reader_of
from serving.generation.pieces import Finish, Piece


class CallingForm(ChatForm):
    """Answers with calls of functions.

    Args:
        named: whether the request names the function, after which OpenAI says that the text ended by itself.
    """

    def __init__(
        self, answering: Answering, wanted: Wanted, functions: Functions, named: bool, shape: Shape = shape
    ) -> None:
        super().__init__(answering, wanted, shape)
        self._functions = functions
        self._named = named
        self._readers: dict[int, Reader] = {}
        self._calls: dict[int, int] = {}
        """How many calls each choice has so far."""

    def _reader(self) -> Reader:
        form = self._generation.calls
        if form is None:
            raise InternalError("how the task's model writes calls is not known")
        return reader_of(form, self._functions)

    def _message(self, one: Continuation) -> dict[str, Any]:
        reader = self._reader()
        parts = [*reader.add(one.text), *reader.end()]
        said = "".join(part.text for part in parts if isinstance(part, Said))
        calls = _calls(parts)
        content = (said.strip() or None) if calls or self._functions.forced else said
        return {**super()._message(one), "content": content, **({"tool_calls": calls} if calls else {})}

    def _called(self, choice: int) -> bool:
        return choice in self._calls

    def _reason(self, finish: Finish | None, called: bool) -> str | None:
        return "tool_calls" if called and finish == "stop" and not self._named else finish

    def _opening(self) -> dict[str, Any]:
        return {"role": "assistant", "content": None if self._functions.forced else ""}

    def _deltas(self, piece: Piece) -> Iterator[dict[str, Any]]:
        reader = self._readers.get(piece.choice)
        if reader is None:
            reader = self._readers[piece.choice] = self._reader()
        parts = [*reader.add(piece.text), *(reader.end() if piece.finish is not None else ())]
        for part in parts:
            yield self._delta_of(piece.choice, part)

    def _delta_of(self, choice: int, part: Part) -> dict[str, Any]:
        if isinstance(part, Said):
            return {"content": part.text}
        if isinstance(part, Called):
            self._calls[choice] = self._calls.get(choice, 0) + 1
            return {"tool_calls": [{"index": self._calls[choice] - 1, **_begun(part.name)}]}
        return {"tool_calls": [{"index": self._calls[choice] - 1, "function": {"arguments": part.text}}]}


def _calls(parts: Iterable[Part]) -> Sequence[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Called):
            found.append(_begun(part.name))
        elif not isinstance(part, Said):
            found[-1]["function"]["arguments"] += part.text
    return found


def _begun(name: str) -> dict[str, Any]:
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": name, "arguments": ""}}
