"""Names of deltas in pictures, and names of picture files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST = 80


def labels_of(paths: Sequence[Path]) -> list[str]:
    """File names without suffix; files that share a name get as many folders before it as tell them apart.

    A file that is given twice is numbered, so no two labels are the same.
    """
    parts = [(*path.absolute().parent.parts, path.stem) for path in paths]
    labels: list[str] = []
    for own in parts:
        label = printable(_shortest_unique(own, parts))
        numbered = (f"{label} ({n})" for n in count(2))
        labels.append(label if label not in labels else next(n for n in numbered if n not in labels))
    return labels


def printable(text: str) -> str:
    """Text with a mark in place of what cannot be printed (control characters, broken encodings)."""
    return "".join(c if c.isprintable() else "�" for c in text)


def safe_file_part(text: str) -> str:
    """Text as part of a file's name: letters, digits and ``_.-``; long text is cut and ends in a hash of the whole."""
    safe = _UNSAFE.sub("_", text)
    if len(safe) <= _LONGEST:
        return safe
    return f"{safe[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _shortest_unique(own: tuple[str, ...], every: Sequence[tuple[str, ...]]) -> str:
    others = [parts for parts in every if parts != own]
    length = next((n for n in range(1, len(own)) if all(parts[-n:] != own[-n:] for parts in others)), len(own))
    return "/".join(own[-length:])
