"""Writing files: errors of the operating system become a `KenError`, and a file appears whole or not at all."""

from __future__ import annotations

import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ken_core.errors import OutputError


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn errors while `out` is written into an `OutputError` that names it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:  # safetensors' own error for a full disk
        raise OutputError(f"{out} cannot be written: {error}") from error


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes the file `out` at the end; after an error nothing of it is left.

    Raises:
        OutputError: the file cannot be written.
    """
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    with writing(out):
        try:
            partial.touch()
            mode = mode_of(partial)  # safetensors gives the files that it writes another one: only their owner's
            yield partial
            partial.chmod(mode)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)


def mode_of(path: Path) -> int:
    """The permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)
