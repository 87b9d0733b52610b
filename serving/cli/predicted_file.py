"""The output file of ``ken predict``, one line for each input, and what it was made from.

Beside ``OUT`` lies ``OUT.run``, JSON that names the inputs, the version and the parameters of the run. A run that was
cut off goes on where ``OUT`` ends, if ``OUT.run`` says the same as the new call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

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
    """The lines that are written already, and the ones that follow. One run at a time has it."""

    def __init__(self, path: Path) -> None:
        self._path, self._record = path, path.with_name(f"{path.name}.run")
        self._file: IO[bytes] | None = None

    @property
    def exists(self) -> bool:
        """Whether the output or the record of its run is there."""
        return self._path.exists() or self._record.exists()

    def begin(self, run: Mapping[str, Any]) -> None:
        """Make an empty output, and the record of its run."""
        with writing(self._path):
            self._opened().truncate(0)  # first, so that no older answers are ever beside the new record
        with new_file(self._record) as partial:
            partial.write_bytes(orjson.dumps(run, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")

    def resume(self, run: Mapping[str, Any], lines: Sequence[int]) -> list[bool]:
        """Cut off a torn last line, and tell of each line that is there whether it is an output, and no error.

        Args:
            run: what would be recorded now.
            lines: the numbers of all lines of the input that are answered, in order.

        Raises:
            OutputError: the output was made from something else, is no output of `ken predict`, or another run writes
                to it; the message says which.
        """
        with writing(self._path):
            file = self._opened()
            data = self._path.read_bytes()
        if not data:  # cut off before the first answer, perhaps before the record
            return []
        recorded = self._recorded()
        for name, words in _WORDS.items():
            if recorded.get(name) != run.get(name):
                start = "; TASK@DIGEST names a version" if name == "digest" else ""
                raise OutputError(
                    f"{self._path} was made from {words}: {_shown(recorded.get(name))} by {self._record.name}, now "
                    f"{_shown(run.get(name))}; give what it was made from, or another --out{start}"
                )
        whole = data[: data.rfind(b"\n") + 1]
        found = [self._checked(number, line, lines) for number, line in enumerate(whole.splitlines())]
        with writing(self._path):
            file.truncate(len(whole))
        return found

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write further lines. They outlive the end of this process."""
        with writing(self._path):
            file = self._opened()
            file.write(as_lines(lines))
            file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _opened(self) -> IO[bytes]:
        """The file, open to append to, and locked until it is closed."""
        import fcntl  # not on every system on which other commands run

        if self._file is None:
            self._file = self._path.open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"another ken predict is writing {self._path}; wait until it has ended, or give another --out"
                ) from None
        return self._file

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
