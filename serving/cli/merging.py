"""The command ``ken merge``: several deltas of one base made one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.options import BaseOption, JsonFlag, Overwrite
from serving.cli.outputs import check_output_file
from serving.cli.panels import DELTAS
from serving.cli.selecting import codecs_of
from serving.cli.show_delta import show_written
from serving.terminal import staged


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=DELTAS)(merge)


def merge(
    deltas: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE=WEIGHT...",
            help="delta files, each with the weight of its shift, such as trec.ken=0.7; a negative weight makes the "
            "model forget the task, 0 leaves the shift out",
        ),
    ],
    base: BaseOption,
    out_file: Annotated[Path, typer.Option("--out", help="delta file to write")],
    head: Annotated[
        Path | None,
        typer.Option(
            help="which of the files the result takes its head, labels, tokenizer and settings from; default the first"
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="linear (the sum of weighted shifts), ties (the largest elements whose signs agree), dare-linear or "
            "dare-ties (elements dropped at random first)"
        ),
    ] = "linear",
    density: Annotated[
        float,
        typer.Option(
            help="with ties, the share of all parameters that each shift keeps, its largest ones; with dare-linear and "
            "dare-ties, the share of each shift that is not dropped"
        ),
    ] = 1.0,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="divide by the sum of the weights' sizes; default: only where signs are elected, and there by the "
            "weights of the deltas that agree",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the elements that are dropped")] = 0,
    codec: Annotated[
        str, typer.Option(help="how values are stored: zstd or raw, or lossy as int8, int4 or sign")
    ] = "zstd",
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Merge deltas of one base into one delta, which has the head of one of them.

    Example: ken merge trec.ken=0.7 news.ken=0.3 --base ./minilm --method ties --density 0.2 --out both.ken
    """
    from ken_core import MergeError, MergeRecipe, Part, combine, deltafile, open_base, open_file

    weighted = [_weighted(text) for text in deltas]
    place = _place_of(head, [path for path, _ in weighted])
    (stored,) = codecs_of([codec])
    try:
        recipe = MergeRecipe(method, density, normalize, seed)  # type: ignore[arg-type]  # the constructor checks it
    except MergeError as error:
        raise typer.BadParameter(str(error)) from None
    check_output_file(out_file, "--out", overwrite)
    files = [open_file(path) for path, _ in weighted]
    with staged() as watch:
        ours = open_base(base)
        parts = [
            Part(deltafile.read(file, ours, ours.identity.digest), weight, file.digest, file.name)
            for file, (_, weight) in zip(files, weighted, strict=True)
        ]
        found = combine(ours, parts, recipe, place, watch)
        file = deltafile.write(found, ours, out_file, stored, progress=watch)
    show_written(file, found.warnings, as_json)


def _weighted(text: str) -> tuple[Path, float]:
    """The file and the weight of one argument."""
    path, _, weight = text.rpartition("=")
    try:
        factor = float(weight)
    except ValueError:
        factor = math.nan
    if not path or not math.isfinite(factor):
        raise typer.BadParameter(f"found {text!r}; expected a file and its weight, such as trec.ken=0.7")
    return Path(path), factor


def _place_of(head: Path | None, paths: Sequence[Path]) -> int:
    """The place of the file whose head the result has."""
    resolved = [path.resolve() for path in paths]
    if twice := [path for i, path in enumerate(paths) if resolved[i] in resolved[:i]]:
        raise typer.BadParameter(f"{twice[0]} is given twice; give it once, with the sum of its weights")
    if head is None:
        return 0
    if head.resolve() not in resolved:
        raise typer.BadParameter(
            f"{head} is none of the files that are merged; add {head}=0 to use its head alone", param_hint="--head"
        )
    return resolved.index(head.resolve())
