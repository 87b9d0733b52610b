"""The command that has a task write: generate."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.cli.options import LOCAL_SERVER, ServerUrl, TaskName
from serving.cli.panels import ASKING
from serving.terminal import counted, printable, say

if TYPE_CHECKING:
    from serving.client import TextPiece


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=ASKING)(generate)


def generate(
    task: TaskName,
    prompt: Annotated[str, typer.Argument(help="text to continue, or message to answer; - reads it from stdin")],
    chat: Annotated[
        bool, typer.Option("--chat", help="answer the prompt as a message, by the task's template")
    ] = False,
    system: Annotated[str | None, typer.Option(help="message of the system before the prompt; implies --chat")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="most tokens; by default as many as the model takes")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token")] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same text")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="text that ends the text; repeatable")] = None,
    timeout: Annotated[float, typer.Option(help="seconds until the text is given up")] = 600.0,
    url: ServerUrl = LOCAL_SERVER,
) -> None:
    """Have a task that is a language model continue a prompt, and print the text as it comes.

    The text goes to stdout; how it ended goes to stderr.

    Example: ken generate support "My parcel is late." --chat --max-tokens 100
    """
    from serving.client import Client

    text = sys.stdin.read() if prompt == "-" else prompt
    asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stop or None}
    parameters = {name: value for name, value in asked.items() if value is not None}
    last: TextPiece | None = None
    with (
        Client(url, os.environ.get("KEN_API_KEY") or None, timeout=timeout) as client,
        client.stream(task, _messages(text, system) if chat or system else text, parameters=parameters) as pieces,
    ):
        for piece in pieces:
            typer.echo(printable(piece.text) if sys.stdout.isatty() else piece.text, nl=False)
            last = piece
        typer.echo()
        usage = pieces.end.usage
    ended = _ended(last, usage.generated_tokens == max_tokens)
    say(f"{counted(usage.generated_tokens, 'token')} after {counted(usage.prompt_tokens, 'token')}; {ended}")


def _ended(last: TextPiece | None, at_limit: bool) -> str:
    """How the text ended, of which this is the last piece."""
    if last is None or last.finish == "length":
        return "as many as were asked for" if at_limit else "the model takes no more"
    return "the model ended the text" if last.stop is None else f"{last.stop!r} ended the text"


def _messages(text: str, system: str | None) -> list[dict[str, Any]]:
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]
