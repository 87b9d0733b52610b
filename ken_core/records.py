"""Reading the rows of data files: JSON lines, or CSV (.csv) and TSV (.tsv) with a header."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import orjson

from ken_core.errors import DataError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Record:
    """A row: the line that it begins in, and its fields by name."""

    line: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """The rows of a file.

    Attributes:
        header: the names of the fields of a CSV or TSV file, whose values are all strings; None for JSON lines.
    """

    path: Path
    header: Sequence[str] | None
    rows: Sequence[Record]


def read_records(path: Path) -> Records:
    """All rows of a file that are not blank.

    Raises:
        DataError: the file cannot be read, or a row is none; the message names its line.
    """
    try:
        data = path.read_bytes().removeprefix(_BOM)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    separator = _SEPARATORS.get(path.suffix.lower())
    if separator is None:
        return Records(path, None, list(_json_rows(path, data)))
    numbered = list(_separated_rows(path, data, separator))
    (_, header), *records = numbered or [(1, [])]
    return Records(path, [name.strip() for name in header], _named(path, header, records))


def header_error(path: Path, header: Sequence[str]) -> DataError:
    """The error of a CSV or TSV file in whose header names are missing or double."""
    separator = "tabs" if _SEPARATORS[path.suffix.lower()] == "\t" else "commas"
    return DataError(
        f"{path}, line 1: expected a header of distinct names with text and label, separated by {separator}; found "
        f"{', '.join(header)[:200]!r}"
    )


def _json_rows(path: Path, data: bytes) -> Iterator[Record]:
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: expected a JSON object ({error})") from error
        if not isinstance(found, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, found {type(found).__name__}")
        yield Record(number, found)


def _named(path: Path, header: Sequence[str], records: Sequence[tuple[int, list[str]]]) -> list[Record]:
    names = [name.strip() for name in header]
    if len(set(names)) != len(names):
        raise header_error(path, header)
    for line, record in records:
        if len(record) != len(header):
            raise DataError(
                f"{path}, line {line}: found {len(record)} fields, the header has {len(header)}; a field that holds "
                'separators or line breaks goes in "quotes"'
            )
    return [Record(line, dict(zip(names, record, strict=True))) for line, record in records]


def _separated_rows(path: Path, data: bytes, separator: str) -> Iterator[tuple[int, list[str]]]:
    """All records that are not empty, the header first, each with the number of the line it starts in."""
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
