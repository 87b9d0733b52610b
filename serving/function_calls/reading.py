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
from serving.function_calls.json_end import JsonEnd


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
        self._several = functions.several

    def of(self, text: str) -> list[Part]:
        """The calls that a text consists of, one or a list of them; none where it is anything else."""
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError):
            return []
        all_of_them = plain if isinstance(plain, list) else [plain]
        found: list[Part] = []
        for one in all_of_them:
            if not isinstance(one, Mapping) or not self._is_call(one):
                return []
            found += [Called(one["name"]), Arguments(json.dumps(self._arguments(one), ensure_ascii=False))]
        return found if self._several else found[:2]

    def _is_call(self, one: Mapping[str, Any]) -> bool:
        name = one.get("name")
        return isinstance(name, str) and name in self._names and isinstance(self._arguments(one), Mapping)

    def _arguments(self, one: Mapping[str, Any]) -> Any:
        """Models now and then write the key of another family."""
        return one.get(self._key, one.get("arguments"))


class MarkedCalls:
    """Calls between two marks, in a text that may have other parts."""

    def __init__(self, form: Format, calls: WrittenCalls) -> None:
        self._opens, self._closes = form.opens, form.closes
        self._calls = calls
        self._held = ""
        self._behind_call = False
        """Whether white space that comes now is no part of the text."""

    def add(self, text: str) -> Iterator[Part]:
        self._hold(self._held + text)
        while (begin := self._held.find(self._opens)) >= 0:
            body = begin + len(self._opens)
            end = self._held.find(self._closes, body)
            if end < 0:
                break
            calls = self._calls.of(self._held[body:end])
            end += len(self._closes)
            yield from _said(self._held[:begin].rstrip() if calls else self._held[:end])
            yield from calls
            self._behind_call = bool(calls)
            self._hold(self._held[end:])
        certain = _certain(self._held, self._opens)
        yield from _said(self._held[:certain])
        self._held = self._held[certain:]

    def end(self) -> Iterator[Part]:
        text, opens, body = self._held.partition(self._opens)
        calls = self._calls.of(body) if opens else []
        yield from _said(text.rstrip() if calls else self._held)
        yield from calls
        self._held = ""

    def _hold(self, text: str) -> None:
        self._held = text.lstrip() if self._behind_call else text
        self._behind_call = self._behind_call and not self._held


class WholeCall:
    """A text that is a call or has none."""

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
        yield from self._calls.of(held) or _said(held)


def _said(text: str) -> Iterator[Part]:
    if text:
        yield Said(text)


def _certain(text: str, opens: str) -> int:
    """How many characters certainly stand before any call, without the white space right before one."""
    begin = text.find(opens)
    if begin < 0:
        most = min(len(text), len(opens) - 1)
        begin = next((len(text) - size for size in range(most, 0, -1) if text.endswith(opens[:size])), len(text))
    return len(text[:begin].rstrip())
