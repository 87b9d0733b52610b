"""The command line, from the Typer application itself: what `--help` says of every command, on one page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from docs.generators.tables import table
from serving.cli import app


def commands() -> str:
    """A section for each command, with its usage, its arguments and options, and its example."""
    return "\n".join(_section(name, command) for name, command in leaves(typer.main.get_command(app)))


def leaves(group: Any, before: str = "ken") -> Iterator[tuple[str, Any]]:
    """Every command by its whole name, such as ``ken keys create``, in the order of ``--help``."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from leaves(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def _section(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    text, _, example = (command.help or "").partition("Example: ")
    parts = [f"## {name}", f"```\n{usage}\n```", _paragraphs(text), table(("", "meaning"), _rows(command, context))]
    if example:
        parts.append(f"Example:\n\n```\n{example.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _paragraphs(text: str) -> str:
    return re.sub(r"(--[a-z][a-z-]*)", r"`\1`", re.sub(r"(?<!\n)\n(?!\n)", " ", text.strip()))


def _rows(command: Any, context: typer.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            yield f"`{record[0]}`", record[1]
