"""Text with labels, as JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ken_core.errors import KenError


class DataError(KenError):
    """A file of examples is not JSON lines of `text` and `label`, or its labels do not fit."""


@dataclass(frozen=True)
class Example:
    text: str
    label: str


def read_examples(path: Path) -> list[Example]:
    """Read JSON lines with the strings `text` and `label`.

    Raises:
        DataError: the file is missing, empty, or a line (named) is something else.
    """
    return [Example(_string(path, n, row, "text"), _string(path, n, row, "label")) for n, row in _rows(path)]


def read_texts(path: Path) -> tuple[list[str], list[str] | None]:
    """Read JSON lines with `text`, and with `label` in all of them or in none.

    Returns:
        The texts, and their labels where there are any.

    Raises:
        DataError: the file is missing, empty, or a line (named) is something else.
    """
    texts, labels = [], []
    for number, row in _rows(path):
        texts.append(_string(path, number, row, "text"))
        if "label" in row:
            labels.append(_string(path, number, row, "label"))
    if labels and len(labels) != len(texts):
        raise DataError(f"{path}: {len(labels)} of {len(texts)} lines have a label; give all of them one, or none")
    return texts, labels or None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered objects of a file that has at least one."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not any(line.strip() for line in lines):
        raise DataError(f"{path} holds no examples")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: expected a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def _string(path: Path, number: int, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, str):
        return value
    found = type(value).__name__ if key in row else "none"
    raise DataError(f'{path}, line {number}: expected {{"text": "...", "label": "..."}}; as {key!r} found {found}')
