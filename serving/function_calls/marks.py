"""Marks in a text that comes in parts: what may be the beginning of one is held back. Pure."""

from __future__ import annotations


def begun(text: str, mark: str) -> int:
    """How many characters at the end of a text are the beginning of a mark, not all of it."""
    most = min(len(text), len(mark) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(mark[:size])), 0)
