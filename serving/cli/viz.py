"""The command viz, which draws what deltas keep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.cli.options import BaseOption, JsonFlag
from serving.cli.outputs import check_output_folder
from serving.cli.panels import DELTAS
from serving.terminal import counted, out, print_json, progress, say, table

if TYPE_CHECKING:
    from ken_core.viz import Report

_MOST_COLUMNS = 6
"""Most deltas side by side in the table of kinds. For more deltas, only the HTML page has that table."""
_MOST_PAIRS = 10


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=DELTAS)(viz)


def viz(
    deltas: Annotated[list[Path], typer.Argument(help="delta files, all of one base", show_default=False)],
    base: BaseOption,
    out_folder: Annotated[Path, typer.Option("--out", help="new folder for the pictures")],
    tensor: Annotated[
        list[str] | None,
        typer.Option("--tensor", help="glob of tensor names to draw, such as '*.3.*query.weight'; repeatable"),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Draw which parameters deltas keep and how far they overlap, as pictures and one HTML page.

    Example: ken viz trec.ken mood.ken --base ./minilm --out ./pictures
    """
    from ken_core import deltafile, open_base
    from ken_core.viz import visualize

    check_output_folder(out_folder, "--out")
    files = [deltafile.open_file(path) for path in deltas]
    ours = open_base(base)
    with progress("drawing") as update:
        report = visualize(ours, files, out_folder, tensors=tensor or (), progress=update)
    _show(report, as_json)
    say(f"wrote {counted(len(report.pictures), 'picture')} and {out_folder / 'index.html'}")


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        print_json(_facts(report))
        return
    out.print(_kinds(report))
    for one in report.subjects:
        if one.ranks:
            ranks = " and ".join(map(str, sorted(set(one.ranks.values()))))
            say(
                f"{one.label}: a shift of low rank {ranks} changes every element of {counted(len(one.ranks), 'tensor')}"
            )
    if report.pairs:
        out.print(_overlaps(report))


def _facts(report: Report) -> dict[str, Any]:
    from ken_core.viz.labels import printable

    return {
        "folder": str(report.folder),
        "page": "index.html",
        "base": report.base,
        "deltas": [
            {
                "delta": one.label,
                "file": printable(str(one.file.path)),
                "digest": one.file.digest,
                **_counts(one.overall),
                "low_rank": [{"tensor": name, "rank": rank} for name, rank in one.ranks.items()],
                "by_kind": [{"kind": kind, **_counts(found)} for kind, found in one.by_kind.items()],
                "by_layer": [{"layer": layer, **_counts(found)} for layer, found in one.by_layer.items()],
                "neighbours": [
                    {"tensor": name, "mean": found.mean, "by_chance": found.by_chance}
                    for name, found in one.surroundings.items()
                ],
            }
            for one in report.subjects
        ],
        "overlaps": [
            {
                "first": pair.first,
                "second": pair.second,
                **_jaccard(pair.overall),
                "by_layer": [{"layer": layer, **_jaccard(found)} for layer, found in pair.layers.items()],
            }
            for pair in report.pairs
        ],
        "pictures": [{"file": one.file, "view": one.view, "title": one.title} for one in report.pictures],
    }


def _counts(found: Any) -> dict[str, Any]:
    return {"kept": found.kept, "elements": found.elements, "fraction": found.fraction}


def _jaccard(found: Any) -> dict[str, Any]:
    return {"both": found.both, "jaccard": found.jaccard, "jaccard_by_chance": found.jaccard_by_chance}


def _kinds(report: Report) -> Any:
    """One row for each kind and one column for each delta; for many deltas, one row for each with its total only."""
    from ken_core.viz.tally import percent

    if len(report.subjects) > _MOST_COLUMNS:
        rows = [[one.label, percent(one.overall.fraction)] for one in report.subjects]
        return table("kept of the backbone", ["delta", "kept"], rows)
    tallies = [one.by_kind for one in report.subjects]
    rows = [[short, *(percent(found[kind].fraction) for found in tallies)] for kind, short in report.short.items()]
    rows.append(["all", *(percent(one.overall.fraction) for one in report.subjects)])
    return table("kept, by kind of tensor", ["kind", *(one.label for one in report.subjects)], rows)


def _overlaps(report: Report) -> Any:
    pairs = sorted(report.pairs, key=lambda pair: pair.overall.jaccard, reverse=True)
    left = f", the {_MOST_PAIRS} largest of {len(pairs)}" if len(pairs) > _MOST_PAIRS else ""
    rows = [
        [f"{p.first} and {p.second}", f"{p.overall.jaccard:.4f}", f"{p.overall.jaccard_by_chance:.4f}"]
        for p in pairs[:_MOST_PAIRS]
    ]
    return table(f"overlap of kept positions{left}", ["pair", "Jaccard", "by chance"], rows)
