"""The inputs of a file: one for each line, in the form in which a server takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ken_core.errors import DataError

if TYPE_CHECKING:
    from ken_core.records import Record

INPUTS_HELP = (
    "JSON lines, CSV or TSV with the field `text`, and `text_pair` for pairs; or with `question` and `context`; or "
    "JSON lines with `inputs`, any input as the server takes it"
)


def read_inputs(path: Path) -> tuple[list[int], list[Any]]:
    """The numbers of the lines that hold inputs, and the inputs.

    Raises:
        DataError: the file cannot be read, is empty, or has a line without an input; the message names the line.
    """
    from ken_core.records import read_records

    rows = read_records(path).rows
    if not rows:
        raise DataError(f"{path} holds no inputs")
    return [row.line for row in rows], [_input(path, row) for row in rows]


def _input(path: Path, row: Record) -> Any:
    fields = row.fields
    if "inputs" in fields:
        return fields["inputs"]
    for names in (("question", "context"), ("query", "texts")):
        if fields.keys() >= set(names):
            return {name: fields[name] for name in names}
    if "text" not in fields:
        raise DataError(
            f"{path}, line {row.line}: found {', '.join(fields) or 'no field'}; expected `text`, `question` and "
            "`context`, `query` and `texts`, or `inputs`"
        )
    pair = fields.get("text_pair")
    return fields["text"] if pair is None else {"text": fields["text"], "text_pair": pair}
