"""Writing an output folder that appears with all its files or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ken_core.errors import OutputExistsError
from ken_core.writing import usual_mode, writing


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
        yield partial
        with writing(out):
            _give_usual_modes(partial)
            if out.exists():
                out.rmdir()
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _give_usual_modes(folder: Path) -> None:
    mode = usual_mode(folder)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
