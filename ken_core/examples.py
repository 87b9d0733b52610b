"""Reading labelled text from files: JSON lines, or CSV (.csv) and TSV (.tsv) with a header.

A row has `text`, usually `label`, and `text_pair` where two texts are judged together. Labels are names in every row or
integers in every row (`ken_core.labels` says what integers mean).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import orjson

from ken_core.errors import DataError
from ken_core.labels import Label
from ken_core.tokenization import Input

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Example:
    text: str
    label: Label
    text_pair: str | None = None

    @property
    def input(self) -> Input:
        """The model's input: the text, or the pair of texts."""
        return self.text if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True)
class _Row:
    line: int
    text: str
    label: Label | None
    text_pair: str | None

    @property
    def input(self) -> Input:
        return self.text if self.text_pair is None else (self.text, self.text_pair)


def read_examples(path: Path) -> list[Example]:
    """Read labelled text.

    Raises:
        DataError: the file is missing or empty, or a row has another form; the message names its line.
    """
    examples = []
    for row in _rows(path):
        if row.label is None:
            raise DataError(f"{path}, line {row.line}: expected a label; found none")
        examples.append(Example(row.text, row.label, row.text_pair))
    return examples


def read_texts(path: Path) -> tuple[list[Input], list[Label] | None]:
    """Read text with a label in every row or in none.

    Returns:
        The texts, and their labels where there are any.

    Raises:
        DataError: the file is missing or empty, or a row has another form; the message names its line.
    """
    rows = _rows(path)
    labels = [row.label for row in rows if row.label is not None]
    if labels and len(labels) != len(rows):
        raise DataError(f"{path}: {len(labels)} of {len(rows)} lines have a label; give all of them one, or none")
    return [row.input for row in rows], labels or None


def _rows(path: Path) -> list[_Row]:
    """The rows of a file: at least one, all of one form."""
    try:
        data = path.read_bytes().removeprefix(_BOM)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    separator = _SEPARATORS.get(path.suffix.lower())
    rows = list(_json_rows(path, data) if separator is None else _separated_rows(path, data, separator))
    if not rows:
        raise DataError(f"{path} holds no examples")
    _check_of_one_form(path, rows)
    return rows


def _check_of_one_form(path: Path, rows: list[_Row]) -> None:
    first = next((row for row in rows if row.label is not None), rows[0])
    for row in rows:
        if row.label is not None and type(row.label) is not type(first.label):
            raise DataError(
                f"{path}, line {row.line}: the label {row.label!r} beside {first.label!r} in line {first.line}; "
                "write all of them as names or all as integers"
            )
        if (row.text_pair is None) != (rows[0].text_pair is None):
            raise DataError(f"{path}, line {row.line}: give all rows a text_pair, or none")


def _json_rows(path: Path, data: bytes) -> Iterator[_Row]:
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: expected a JSON object ({error})") from error
        if not isinstance(found, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, found {type(found).__name__}")
        text = _string(path, number, found, "text")
        pair = _string(path, number, found, "text_pair") if found.get("text_pair") is not None else None
        yield _Row(number, text, _label(path, number, found), pair)


def _label(path: Path, number: int, row: dict[str, Any]) -> Label | None:
    value = row.get("label")
    if value is None and "label" not in row:
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return value
    raise DataError(
        f"{path}, line {number}: found the label {value!r} ({type(value).__name__}); expected a name or an integer"
    )


def _string(path: Path, number: int, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, str):
        return value
    found = type(value).__name__ if key in row else "none"
    raise DataError(
        f'{path}, line {number}: expected {{"text": "...", "label": ...}}; found {found} as {key!r}, expected a string'
    )


def _separated_rows(path: Path, data: bytes, separator: str) -> list[_Row]:
    """Rows of a CSV or TSV file; labels are integers if all fields of their column are."""
    numbered = list(_records(path, data, separator))
    if not numbered:
        return []
    (_, header), *records = numbered
    columns = {name.strip(): index for index, name in enumerate(header)}
    if "text" not in columns or len(columns) != len(header):
        raise DataError(
            f"{path}, line 1: expected a header of distinct names with text and label, separated by "
            f"{'tabs' if separator == chr(9) else 'commas'}; found {', '.join(header)[:200]!r}"
        )
    for line, record in records:
        if len(record) != len(header):
            raise DataError(
                f"{path}, line {line}: found {len(record)} fields, the header has {len(header)}; a field that holds "
                'separators or line breaks goes in "quotes"'
            )
    label, pair = columns.get("label"), columns.get("text_pair")
    labels = [record[label] for _, record in records] if label is not None else []
    integers = bool(labels) and all(_is_integer(text) for text in labels)
    return [
        _Row(
            line,
            record[columns["text"]],
            None if label is None else _field_label(path, line, record[label], integers),
            None if pair is None else record[pair],
        )
        for line, record in records
    ]


def _records(path: Path, data: bytes, separator: str) -> Iterator[tuple[int, list[str]]]:
    """All records that are not empty, each with the number of the line it starts in."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: no UTF-8 ({error.reason}); save the file as UTF-8") from error
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a field may be as long as the file
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for record in reader:
            if any(field.strip() for field in record):
                yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: {error}") from error


def _field_label(path: Path, line: int, field: str, integers: bool) -> Label:
    if not field.strip():
        raise DataError(f"{path}, line {line}: the label is empty")
    if field != field.strip():
        raise DataError(f"{path}, line {line}: found the label {field!r}; remove the spaces around it")
    return int(field) if integers else field


def _is_integer(text: str) -> bool:
    """Whether a field is an integer as Python writes it; `007` is not, so it is a name."""
    try:
        return str(int(text)) == text
    except ValueError:
        return False
