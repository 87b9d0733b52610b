"""Reading labelled text from files: JSON lines, or CSV (.csv) and TSV (.tsv) with a header.

A row has `text`, usually `label`, and `text_pair` where two texts are judged together. Labels are names in every row or
integers in every row (`ken_core.labels` says what integers mean).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ken_core.errors import DataError
from ken_core.labels import Label
from ken_core.records import Record, Records, header_error, read_records

if TYPE_CHECKING:  # needs torch, and reading does not
    from ken_core.tokenization import Input

_OF_LANGUAGE_MODELS = ("prompt", "completion", "messages")
"""Fields that `ken_core.language_examples` reads."""


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
    records = read_records(path)
    rows = list(map(partial(_json_row, path), records.rows)) if records.header is None else _separated_rows(records)
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


def _json_row(path: Path, record: Record) -> _Row:
    text = _string(path, record, "text")
    pair = _string(path, record, "text_pair") if record.fields.get("text_pair") is not None else None
    return _Row(record.line, text, _label(path, record), pair)


def _label(path: Path, record: Record) -> Label | None:
    value = record.fields.get("label")
    if value is None and "label" not in record.fields:
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return value
    raise DataError(
        f"{path}, line {record.line}: found the label {value!r} ({type(value).__name__}); expected a name or an integer"
    )


def _string(path: Path, record: Record, key: str) -> str:
    value = record.fields.get(key)
    if isinstance(value, str):
        return value
    found = type(value).__name__ if key in record.fields else "none"
    learned = [name for name in _OF_LANGUAGE_MODELS if name in record.fields]
    hint = f". A language model learns from {' and '.join(learned)}, and this is for other tasks" if learned else ""
    raise DataError(
        f'{path}, line {record.line}: expected {{"text": "...", "label": ...}};'
        f" found {found} as {key!r}, expected a string{hint}"
    )


def _separated_rows(records: Records) -> list[_Row]:
    """Rows of a CSV or TSV file; labels are integers if all fields of their column are."""
    header = records.header or ()
    if header and "text" not in header:
        raise header_error(records.path, header)
    labelled = "label" in header
    integers = labelled and bool(records.rows) and all(_is_integer(r.fields["label"]) for r in records.rows)
    return [
        _Row(
            r.line,
            r.fields["text"],
            _field_label(records.path, r.line, r.fields["label"], integers) if labelled else None,
            r.fields.get("text_pair"),
        )
        for r in records.rows
    ]


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
