"""Where an object of JSON ends, found as its text comes."""

from __future__ import annotations


class JsonEnd:
    """Follows the text of one object. The text is JSON, or the beginning of it."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def find(self, part: str) -> int | None:
        """Take the next part. Returns the place behind the object's end; None: it goes on."""
        for place, letter in enumerate(part):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped = letter == "\\"
                self._in_text = letter != '"'
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None
