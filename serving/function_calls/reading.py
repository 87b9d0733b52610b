"""Calls found in a text as it comes.

A forced text has the form that its grammar gives it, so a call's arguments are told as they come. Where the model
decides, a call is told when it is complete and well-formed; everything else stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from serving.function_calls.formats import Format
from serving.function_calls.functions import Functions
from serving.function_calls.json_text import BrokenError, JsonEnd, items
from serving.function_calls.marks import begun


@dataclass(frozen=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class Called:
    """The next call begins."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """The next part of the arguments of the last call, which are JSON."""

    text: str


Part = Said | Called | Arguments


class Reader(Protocol):
    """Finds the calls of one text."""

    @property
    def is_whole(self) -> bool:
        """Whether the last call is complete."""

    def add(self, text: str) -> Iterator[Part]:
        """Take the next part of the text."""

    def end(self) -> Iterator[Part]:
        """What was held back, now that nothing follows."""


def reader_of(form: Format, functions: Functions) -> Reader:
    """What finds the calls of a family's texts."""
    if functions.forced:
        return ForcedCalls(form)
    calls = WrittenCalls(form, functions)
    return MarkedCalls(form, calls) if form.opens else WholeCall(calls)


class ForcedCalls:
    """Calls that a grammar of `serving.function_calls.forcing` made."""

    def __init__(self, form: Format) -> None:
        self._head = re.compile(rf'\{{"name": ("[^"]+"), "{form.arguments}": ')
        self._held = ""
        self._object: JsonEnd | None = None

    @property
    def is_whole(self) -> bool:
        return self._object is None

    def add(self, text: str) -> Iterator[Part]:
        self._held += text
        while self._held:
            if self._object is None:
                found = self._head.search(self._held)
                if found is None:
                    return
                yield Called(json.loads(found[1]))
                self._held, self._object = self._held[found.end() :], JsonEnd()
                continue
            end = self._object.find(self._held)
            yield Arguments(self._held[:end])
            self._held = "" if end is None else self._held[end:]
            if end is not None:
                self._object = None

    def end(self) -> Iterator[Part]:
        return iter(())


class WrittenCalls:
    """Calls as models write them where no grammar makes them well-formed."""

    def __init__(self, form: Format, functions: Functions) -> None:
        self._key = form.arguments
        self._names = functions.names
        self._left = None if functions.several else 1
        """How many calls the text may still have; None: any number."""

    def of(self, text: str) -> list[Part]:
        """The calls that a text consists of, one or a list of them, with the model's own text of their arguments; none
        where it is anything else."""
        try:
            calls = [self._call(one) for one in items(text)]
        except (ValueError, RecursionError):
            return []
        return [part for call in calls for part in call]

    def allowed(self, calls: list[Part]) -> list[Part]:
        """Those of the calls that the text may still have."""
        if self._left is None:
            return calls
        kept, self._left = calls[: 2 * self._left], 0
        return kept

    def _call(self, one: Mapping[str, tuple[Any, str]]) -> list[Part]:
        name, _ = one.get("name", (None, ""))
        # models now and then write the key of another family
        arguments, text = one.get(self._key) or one.get("arguments") or (None, "")
        if not (isinstance(name, str) and name in self._names and isinstance(arguments, Mapping)):
            raise BrokenError
        return [Called(name), Arguments(text)]


class MarkedCalls:
    """Calls between two marks, in a text that may have other parts.

    What is held back begins with a mark, or may be the beginning of one.
    """

    is_whole = True

    def __init__(self, form: Format, calls: WrittenCalls) -> None:
        self._opens, self._closes = form.opens, form.closes
        self._calls = calls
        self._held = ""
        self._object: JsonEnd | None = None
        """Of the call that has begun; None: none has."""
        self._seen = 0
        """How much of what is held that object has seen."""
        self._end: int | None = None
        """Where in what is held the object ended."""
        self._space = ""
        """White space before the last mark, which stands before the next text."""
        self._behind_call = False
        """Whether white space that comes next is that around a call."""
        self._has_said = False

    def add(self, text: str) -> Iterator[Part]:
        self._held += text
        while self._held:
            if self._object is None:
                yield from self._look()
                if self._object is None:
                    return
            try:
                found = self._followed()
            except BrokenError:
                yield from self._no_call()
                continue
            if found is None:
                return
            yield from self._calls.allowed(found)

    def end(self) -> Iterator[Part]:
        calls = [] if self._end is None else self._calls.of(self._held[len(self._opens) : self._end])
        yield from self._calls.allowed(calls) or self._text(self._held)
        self._held = ""

    def _look(self) -> Iterator[Part]:
        """Tell the text before the next call, and begin that call if its mark is there."""
        begin = self._held.find(self._opens)
        certain = len(self._held[: len(self._held) - begun(self._held, self._opens) if begin < 0 else begin].rstrip())
        yield from self._text(self._held[:certain])
        self._held = self._held[certain:]
        if begin >= 0:
            gap = self._held[: begin - certain]
            self._space = self._space if self._behind_call else gap
            self._held = self._held[len(gap) :]
            self._object, self._seen, self._end = JsonEnd(), len(self._opens), None

    def _followed(self) -> list[Part] | None:
        """The calls that are complete with what is held; None: more must come.

        Raises:
            BrokenError: what follows the mark is no call.
        """
        if self._end is None and self._object is not None:
            end = self._object.find(self._held[self._seen :])
            self._end = None if end is None else self._seen + end
            self._seen = len(self._held)
        if self._end is None:
            return None
        behind = self._held[self._end :].lstrip()
        if not behind.startswith(self._closes):
            if self._closes.startswith(behind):
                return None
            raise BrokenError
        calls = self._calls.of(self._held[len(self._opens) : self._end])
        if not calls:
            raise BrokenError
        self._held, self._object = behind[len(self._closes) :], None
        self._behind_call = True
        self._space = self._space if self._has_said else ""
        return calls

    def _no_call(self) -> Iterator[Part]:
        """The mark is text, and what follows it may have another one."""
        yield from self._text(self._opens)
        self._held, self._object = self._held[len(self._opens) :], None

    def _text(self, text: str) -> Iterator[Part]:
        kept = text.lstrip() if self._behind_call else text
        if kept:
            yield Said(self._space + kept)
            self._space, self._behind_call, self._has_said = "", False, True


class WholeCall:
    """A text that is a call or has none."""

    is_whole = True

    def __init__(self, calls: WrittenCalls) -> None:
        self._calls = calls
        self._held: str | None = ""

    def add(self, text: str) -> Iterator[Part]:
        if self._held is None:
            yield from _said(text)
            return
        self._held += text
        begun = self._held.lstrip()
        if begun and not begun.startswith(("{", "[")):
            yield from _said(self._held)
            self._held = None

    def end(self) -> Iterator[Part]:
        held, self._held = self._held or "", None
        yield from self._calls.allowed(self._calls.of(held)) or _said(held)


def _said(text: str) -> Iterator[Part]:
    if text:
        yield Said(text)
