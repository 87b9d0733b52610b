"""What commands write to: checked before the work, so that nothing is lost and no work is in vain."""

from __future__ import annotations

from pathlib import Path

import typer


def check_output_file(path: Path, option: str, overwrite: bool) -> None:
    """Refuse a file that is there already, unless it is to be replaced, and a file without a folder.

    Raises:
        typer.BadParameter: the command cannot write to `path`.
    """
    if not path.resolve().parent.is_dir():
        raise typer.BadParameter(f"found no folder {path.resolve().parent}; create it first", param_hint=option)
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; give a file", param_hint=option)
    if path.exists() and not overwrite:
        raise typer.BadParameter(
            f"{path} exists already; give another file, or --overwrite to replace it", param_hint=option
        )


def check_output_folder(path: Path, option: str) -> None:
    """Refuse a folder that holds something: what lies in it is never deleted.

    Raises:
        typer.BadParameter: `path` exists and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise typer.BadParameter(f"{path} exists already; give a new or empty folder", param_hint=option)
