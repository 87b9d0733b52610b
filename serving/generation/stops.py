"""Texts that end a continuation, found as its text comes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from serving.function_calls.marks import begun


class Stops:
    """Looks for stop texts in a text that comes in parts. Nothing is given out that may be the beginning of one.

    Args:
        texts: none of them empty.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""

    def add(self, part: str) -> tuple[str, str | None]:
        """Take the next part.

        Returns:
            The text that is certain to come before any stop, and the stop that was found. After that nothing follows.
        """
        if not self._texts:
            return part, None
        text = self._held + part
        found = [(place, stop) for stop in self._texts if (place := text.find(stop)) >= 0]
        if found:
            place, stop = min(found)
            self._held = ""
            return text[:place], stop
        held = max((begun(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held
