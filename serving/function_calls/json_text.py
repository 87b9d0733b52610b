"""Objects of JSON in a text that comes in parts: where they end, and their members with the very text of each."""

from __future__ import annotations

import json
from typing import Any, NoReturn

_SPACE = " \t\n\r"
_OUTSIDE = frozenset('{}[]:,"+-.' + _SPACE + "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""What may stand outside of the texts of JSON."""


class BrokenError(ValueError):
    """A text is no JSON, whatever follows."""


class JsonEnd:
    """Follows one object or list. Each character is looked at once."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def find(self, part: str) -> int | None:
        """Take the next part. Returns the place behind the end; None: it goes on.

        Raises:
            BrokenError: it is no JSON.
        """
        for place, letter in enumerate(part):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped = letter == "\\"
                self._in_text = letter != '"'
            elif letter not in _OUTSIDE:
                raise BrokenError
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
            if self._depth == 0 and not (self._in_text or letter in _SPACE):
                return place + 1
        return None


def _refuse(constant: str) -> NoReturn:
    raise BrokenError(constant)


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def members(text: str, start: int = 0) -> tuple[dict[str, tuple[Any, str]], int]:
    """The members of the object that begins at a place: values, with their own text; and the place behind the object.

    Raises:
        ValueError: there is no object of JSON.
        RecursionError: it is nested too deeply.
    """
    found: dict[str, tuple[Any, str]] = {}
    at = _past(text, start, "{")
    while text[at : at + 1] != "}":
        key, at = _DECODER.raw_decode(text, at)
        if not isinstance(key, str):
            raise BrokenError
        at = _past(text, at, ":")
        value, end = _DECODER.raw_decode(text, at)
        found[key] = (value, text[at:end])
        at = _behind_space(text, end)
        if text[at : at + 1] != "}":
            at = _past(text, at, ",")
            if text[at : at + 1] == "}":
                raise BrokenError
    return found, at + 1


def items(text: str) -> list[dict[str, tuple[Any, str]]]:
    """The members of an object that is the whole text, or of each object in such a list. Raises as `members` does."""
    at = _behind_space(text, 0)
    if text[at : at + 1] != "[":
        one, at = members(text, at)
        found = [one]
    else:
        found, at = [], at + 1
        while True:
            one, at = members(text, _behind_space(text, at))
            found.append(one)
            at = _behind_space(text, at)
            if text[at : at + 1] == "]":
                at += 1
                break
            at = _past(text, at, ",")
    if _behind_space(text, at) != len(text):
        raise BrokenError
    return found


def _past(text: str, at: int, letter: str) -> int:
    """The place of what follows a letter, which must stand here."""
    at = _behind_space(text, at)
    if text[at : at + 1] != letter:
        raise BrokenError
    return _behind_space(text, at + 1)


def _behind_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
