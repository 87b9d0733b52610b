"""Writing an output folder that appears with all its files or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ken_core.errors import OutputExistsError
from ken_core.writing import mode_of, writing


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `out` at the end; after an error or Ctrl-C nothing of it is left.

    Raises:
        OutputExistsError: `out` exists and is not an empty folder.
        OutputError: the folder cannot be written.
    """
    with writing(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputExistsError(f"{out} exists already; give a new or empty folder")
        out = out.resolve()
        partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        with writing(out):
            mode = mode_of(partial) & 0o666  # what a new file gets here
        yield partial
        with writing(out):
            _give_mode(partial, mode)
            if out.exists():
                out.rmdir()
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _give_mode(folder: Path, mode: int) -> None:
    """Give each file a mode: those that safetensors writes have another one, only their owner's."""
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
