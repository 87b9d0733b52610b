"""The command ``ken predict``: a file of inputs becomes a file of answers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from serving.cli.answering import Answerer, Given, answerer, in_order, refuse_if_all_fail
from serving.cli.input_lines import INPUTS_HELP, read_inputs
from serving.cli.options import DataDir, Namespace, Overwrite, RedisUrl, Url
from serving.cli.outputs import check_output_file
from serving.cli.panels import ASKING
from serving.cli.predicted_file import PredictedFile, as_lines, sha256_of
from serving.cli.targets import LocalBase, TargetArgument, target_of
from serving.terminal import counted, error_line, progress, say

_STDIN = Path("/dev/stdin")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=ASKING)(predict)


def predict(
    context: typer.Context,
    target: TargetArgument,
    data: Annotated[Path, typer.Option(help=f"{INPUTS_HELP}. - reads JSON lines from stdin")],
    out: Annotated[Path, typer.Option(help="file to write, JSON lines; - writes to stdout")],
    base: LocalBase = None,
    kind: Annotated[
        str | None, typer.Option(help="kind of question, such as rerank; default: the task's own kind")
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(help="the kind's parameters as a JSON object, such as '{\"top_k\": 1}'")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="inputs in one request")] = 16,
    in_flight: Annotated[int, typer.Option(min=1, max=256, help="most requests at the same time")] = 8,
    resume: Annotated[bool, typer.Option("--resume", help="go on where a run of the same command was cut off")] = False,
    overwrite: Overwrite = False,
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
) -> None:
    """Answer a file of inputs through a server or in this process, with the version that the name means at the start.

    Line by line, in the order of the inputs: the number of the input's line, the output, and the digest that answered.
    An input that cannot be answered gets a line with the error, and the exit code is 1. OUT.run says what the answers
    were made from; with it --resume goes on after Ctrl-C, a kill, or the loss of the server.

    Example: ken predict trec --data questions.jsonl --out answers.jsonl --url http://localhost:8000
    """
    import asyncio  # imported late, since `ken --help` would wait for it

    meant = target_of(target, context, url)
    asked_for = _parsed(parameters)
    to_stdout = str(out) == "-"
    if to_stdout and resume:
        raise typer.BadParameter("stdout cannot be resumed; give a file as --out", param_hint="--resume")
    written = None if to_stdout else PredictedFile(out)
    if written is not None and not resume:
        if written.exists and not overwrite:
            raise typer.BadParameter(
                f"{out} exists already; --resume goes on with it, --overwrite replaces it", param_hint="--out"
            )
        check_output_file(out, "--out", overwrite)
    if written is not None and out.exists() and data.exists() and out.samefile(data):
        raise typer.BadParameter(f"{out} is the file of the inputs; give another one", param_hint="--out")
    limits = (batch, in_flight if meant.kind == "served" else 1)  # in this process one batch runs at a time anyway
    lines, inputs = read_inputs(_STDIN if str(data) == "-" else data)

    async def run() -> list[bool]:
        async with answerer(meant, base, url, redis_url, data_dir, namespace, kind=kind, parameters=asked_for) as asked:
            made_from = {
                "inputs": sha256_of(inputs), "digest": asked.digest, "kind": kind, "parameters": asked_for
            }  # fmt: skip
            done = written.resume(made_from, lines) if written is not None and resume and written.exists else []
            await _answer(asked, lines, inputs, done, _Output(written, made_from), limits)
            return done

    try:
        done = asyncio.run(run())
    finally:
        if written is not None:
            written.close()
    failed = done.count(False)
    if written is not None:
        say(f"wrote {out}: {counted(len(done), 'line')}, {counted(failed, 'error')}")
    if failed:
        error_line(f"{counted(failed, 'input')} of {len(done)} could not be answered; their lines say why")
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Output:
    """Where lines go: a file, or stdout where there is none."""

    file: PredictedFile | None
    made_from: Mapping[str, Any]

    def begin(self) -> None:
        if self.file is not None:
            self.file.begin(self.made_from)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.file is not None:
            self.file.add(rows)
        else:
            sys.stdout.write(as_lines(rows).decode())
            sys.stdout.flush()


async def _answer(
    asked: Answerer,
    lines: Sequence[int],
    inputs: Sequence[Any],
    done: list[bool],
    output: _Output,
    limits: tuple[int, int],
) -> None:
    """Answer what is left; `done` gets one element for each line that was written."""
    try:
        with progress("answering") as update:
            update(len(done), len(inputs), "")
            async for some in in_order(asked, inputs[len(done) :], *limits):
                if not done:
                    refuse_if_all_fail(some)
                    output.begin()
                numbers = lines[len(done) : len(done) + len(some)]
                rows = [_row(number, one, asked.digest) for number, one in zip(numbers, some, strict=True)]
                output.add(rows)
                done += [one.error is None for one in some]
                update(len(done), len(inputs), "")
    except BaseException:
        if output.file is not None and done:
            with suppress(OSError):  # a terminal that is gone must not hide the reason
                say(f"{len(done)} of {len(inputs)} lines are written; the same command with --resume goes on")
        raise


def _row(line: int, given: Given, digest: str) -> dict[str, Any]:
    if given.error is not None:
        return {"line": line, "error": given.error, "digest": digest}
    cut = {"truncated": True} if given.truncated else {}
    return {"line": line, "output": given.output, **cut, "digest": digest}


def _parsed(parameters: str | None) -> dict[str, Any]:
    if parameters is None:
        return {}
    try:
        found = orjson.loads(parameters)
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"found no JSON: {error}", param_hint="--parameters") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(
            f"found {type(found).__name__}; expected a JSON object, such as '{{\"top_k\": 1}}'",
            param_hint="--parameters",
        )
    return found
