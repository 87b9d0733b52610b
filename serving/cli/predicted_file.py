"""The output file of ``ken predict``, one line for each input, and what it was made from.

Beside ``OUT`` lies ``OUT.run``, JSON that names the inputs, the version and the parameters of the run. A run that was
cut off goes on where ``OUT`` ends, if ``OUT.run`` says the same as the new call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from ken_core.errors import OutputError
from ken_core.writing import new_file, writing

_WORDS = {
    "inputs": "other inputs",
    "digest": "another version",
    "kind": "another kind of question",
    "parameters": "other parameters",
}


class PredictedFile:
    """The lines that are written already, and the ones that follow."""

    def __init__(self, path: Path) -> None:
        self._path, self._record = path, path.with_name(f"{path.name}.run")

    def begin(self, run: Mapping[str, Any]) -> None:
        """Make an empty output, and the record of its run."""
        with writing(self._path):
            self._path.write_bytes(b"")  # first, so that no older answers are ever beside the new record
        with new_file(self._record) as partial:
            partial.write_bytes(orjson.dumps(run, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")

    def resume(self, run: Mapping[str, Any], lines: Sequence[int]) -> list[bool]:
        """Cut off a torn last line, and tell of each line that is there whether it is an output, and no error.

        Args:
            run: what would be recorded now.
            lines: the numbers of all lines of the input that are answered, in order.

        Raises:
            OutputError: the output was made from something else, or is no output of `ken predict`; the message says
                what differs.
        """
        recorded = self._recorded()
        for name, words in _WORDS.items():
            if recorded.get(name) != run.get(name):
                start = "; TASK@DIGEST names a version" if name == "digest" else ""
                raise OutputError(
                    f"{self._path} was made from {words}: {_shown(recorded.get(name))} by {self._record.name}, now "
                    f"{_shown(run.get(name))}; give what it was made from, or another --out{start}"
                )
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            data = b""
        whole = data[: data.rfind(b"\n") + 1]
        found = [self._checked(number, line, lines) for number, line in enumerate(whole.splitlines())]
        with writing(self._path), self._path.open("ab") as file:
            file.truncate(len(whole))
        return found

    def _recorded(self) -> Mapping[str, Any]:
        try:
            recorded = orjson.loads(self._record.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise OutputError(
                f"{self._record} says what {self._path.name} was made from, and cannot be read ({error}); without it "
                "nothing can be resumed: give another --out, or --overwrite"
            ) from error
        return recorded if isinstance(recorded, dict) else {}

    def _checked(self, number: int, line: bytes, lines: Sequence[int]) -> bool:
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            found = None
        if number >= len(lines) or not isinstance(found, dict) or found.get("line") != lines[number]:
            what = f"the answer to line {lines[number]} of the input" if number < len(lines) else "no further line"
            raise OutputError(
                f"{self._path}, line {number + 1}: expected {what}; the file was changed, so nothing can be resumed: "
                "give another --out, or --overwrite"
            )
        return "error" not in found

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write further lines. They outlive the end of this process."""
        with writing(self._path), self._path.open("ab") as file:
            file.write(as_lines(lines))

    @property
    def exists(self) -> bool:
        """Whether the output or the record of its run is there."""
        return self._path.exists() or self._record.exists()


def sha256_of(inputs: Sequence[Any]) -> str:
    """Identifies the inputs of a run: the sha256 of their JSON, one a line."""
    sha = hashlib.sha256()
    for one in inputs:
        sha.update(orjson.dumps(one, option=orjson.OPT_SORT_KEYS) + b"\n")
    return sha.hexdigest()


def as_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """JSON, one row a line."""
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= 80 else f"{text[:80]}…"
