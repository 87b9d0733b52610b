"""The command ``ken calibrate``: the smallest delta whose loss is sure to stay within a tolerance."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.judging import LanguageMetric, judges_of
from serving.cli.options import (
    BaseOption,
    CastOption,
    ExcludeOption,
    IgnoreConfigOption,
    IncludeOption,
    JsonFlag,
    OnlyOption,
    OutsideOption,
    Overwrite,
)
from serving.cli.outputs import check_output_file
from serving.cli.panels import DELTAS
from serving.cli.selecting import calibrated_methods, codecs_of, parsed_size, tensor_filter
from serving.cli.show_calibration import show_calibration
from serving.terminal import staged, warn


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=DELTAS)(calibrate)


def calibrate(
    base: BaseOption,
    tuned: Annotated[
        str, typer.Option(help="folder or hub name of the fine-tuned checkpoint: a text classifier or a language model")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="JSON lines, CSV or TSV with the field `text`, and `label` if there are labels; for a language model "
            "`text`, or `prompt` and `completion`, or (JSON lines) `messages`"
        ),
    ],
    out_file: Annotated[Path, typer.Option("--out", help="delta file to write")],
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="most that the share of right answers may fall, default 0.005, half a point; of a language model, "
            "what share of itself its perplexity may rise by, default 0.01, or with --metric agreement the share of "
            "a text's tokens that may change, on average over texts, default 0.05"
        ),
    ] = None,
    metric: Annotated[
        LanguageMetric | None,
        typer.Option(
            help="what a language model is judged by: its perplexity (the default), or how many of its likeliest "
            "tokens are the fine-tune's. A classifier is judged by labels, or without them by equal answers"
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=8, help="of a language model, most tokens that are read of an example at once; default 512"),
    ] = None,
    file_size: Annotated[
        str | None,
        typer.Option(
            "--size", help="in place of --tolerance: most bytes of the file, such as 1MB; the loss is then promised"
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="probability that the promise about the loss is kept")
    ] = 0.9,
    method: Annotated[list[str] | None, typer.Option(help="method to try; repeatable; default svd, magnitude")] = None,
    codec: Annotated[
        list[str] | None, typer.Option(help="codec to try with each method; repeatable; default int4")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed by which the text is divided")] = 0,
    only: OnlyOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    outside: OutsideOption = "reset",
    curve: Annotated[
        Path | None, typer.Option(help="PNG file to write with a plot of score against bytes; needs matplotlib")
    ] = None,
    cast: CastOption = False,
    ignore_config: IgnoreConfigOption = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the smallest delta that is sure to lose at most a tolerance, or say what a delta of a given size loses.

    A fifth of the text chooses, the rest judges what was chosen. Without labels, the share of texts that the delta and
    the fine-tune answer alike is used in place of accuracy; of a language model, perplexity.

    Example: ken calibrate --base ./minilm --tuned ./minilm-trec --data dev.jsonl --out trec.ken --curve trec.png
    """
    from ken_core import calibration, open_base, open_tuned
    from ken_core.viz.errors import require_matplotlib

    if file_size is not None and tolerance is not None:
        raise typer.BadParameter("give a size or a tolerance, not both", param_hint="--size")
    most = None if file_size is None else parsed_size(file_size)
    codecs = codecs_of(codec or calibration.CODECS_TRIED)
    methods = calibrated_methods(method or calibration.METHODS)
    tensors = tensor_filter(only, include, exclude, outside)
    check_output_file(out_file, "--out", overwrite)
    if curve is not None:
        require_matplotlib()
        check_output_file(curve, "--curve", overwrite)
    theirs = open_tuned(tuned)
    by = judges_of(theirs, data, metric, max_length, seed)
    ours, judges = open_base(base), by.judges
    if most is None:
        search = partial(calibration.calibrate, tolerance=by.usual_tolerance if tolerance is None else tolerance)
    else:
        search = partial(calibration.best_within, size=most)
    with staged() as watch:
        found = search(
            ours,
            theirs,
            judges,
            out=out_file,
            confidence=confidence,
            methods=methods,
            codecs=codecs,
            tensors=tensors,
            cast=cast,
            ignore_config=ignore_config or (),
            progress=watch,
        )
    for warning in found.warnings:
        warn(warning)
    for warning in by.warnings:
        warn(warning)
    if curve is not None:
        from ken_core.viz.draw_calibration import draw_calibration

        draw_calibration(found.record, curve)
    show_calibration(found, as_json)
