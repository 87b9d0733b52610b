"""The gallery's page: one HTML file that contains every picture, opens from disk and loads nothing.

Names come from files that other people made. So all text is escaped where it is put into the page, and the page's
Content-Security-Policy forbids scripts and everything that is not in the page.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ken_core.manifest import Manifest
from ken_core.viz.labels import printable
from ken_core.viz.report import Picture, Report, Subject
from ken_core.viz.tally import percent

PAGE = "index.html"

_SECTIONS = {
    "fractions": "Fraction kept, by layer and kind",
    "overlap": "Overlap between deltas",
    "layers": "Layer-wise view",
    "matrix": "Single-matrix and neighbour-count view",
}
_OPEN_DELTAS = 4
"""How many deltas' pictures are unfolded at first, where a section has several deltas."""

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --ink: #1b1b1b; --soft: #595959; --line: #d0d0d0; --ground: #fbfbfa; --link: #0b57a4; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e6e6; --soft: #adadad; --line: #45484d; --ground: #17191c; --link: #8ab8ee; }}
}}
body {{ margin: 0 auto; padding: 1.5rem; max-width: 76rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--ground); overflow-wrap: anywhere; }}
h2 {{ margin-top: 3rem; border-bottom: 1px solid var(--line); }}
a {{ color: var(--link); }}
figure {{ margin: 1.5rem 0 2.5rem; }}
figure img {{ max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; border: 1px solid var(--line);
  box-sizing: border-box; }}
figcaption {{ max-width: 60rem; color: var(--soft); font-size: .92rem; }}
figcaption b {{ color: var(--ink); }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }}
caption {{ text-align: left; color: var(--soft); font-size: .92rem; }}
th, td {{ padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }}
.figure {{ text-align: right; white-space: nowrap; }}
th {{ font-weight: 600; }}
summary {{ cursor: pointer; font-size: 1.15rem; font-weight: 600; margin: 1rem 0; }}
code {{ font-size: .9em; }}
</style>
</head>
"""


def page(report: Report, folder: Path) -> str:
    """The whole page.

    Args:
        folder: where the pictures' files lie.
    """
    title = escape(f"KENviz: what deltas of {printable(report.base)} keep")
    parts = [_HEAD.format(title=title), f"<body>\n<h1>{title}</h1>\n", _introduction(), _contents(report)]
    parts += ['<h2 id="deltas">Deltas</h2>\n', _deltas(report.subjects)]
    for view, heading in _SECTIONS.items():
        pictures = [picture for picture in report.pictures if picture.view == view]
        if not pictures:
            continue
        parts.append(f'<h2 id="{view}">{heading}</h2>\n')
        parts += _section(report, view, pictures, folder)
    return "".join([*parts, "</body>\n</html>\n"])


def _introduction() -> str:
    return (
        "<p>A delta keeps the fine-tuned value of some parameters of a base; all others are the base's own. "
        "A parameter is <em>kept</em> where the delta holds a value for it: the selection chose it and it differs from "
        "the base's. A shift of low rank changes every parameter of its matrix; its size is drawn instead. "
        "The views are those of KENviz (Mastromattei and Zanzotto, <cite>Less is KEN</cite>, ACL 2024, "
        "arXiv 2402.03142), with fractions and overlaps added.</p>\n"
    )


def _contents(report: Report) -> str:
    views = [view for view in _SECTIONS if any(p.view == view for p in report.pictures)]
    items = [("deltas", "Deltas"), *((view, _SECTIONS[view]) for view in views)]
    links = "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in items)
    return f"<nav aria-label='Contents'><ul>{links}</ul></nav>\n"


def _deltas(subjects: Sequence[Subject]) -> str:
    columns = ["delta", "file", "task", "classes", "selection", "kept", "of", "share", "sha256"]
    rows = []
    for one in subjects:
        m = one.file.manifest
        rows.append(
            [
                one.label,
                printable(one.file.path.name),
                m.kind,
                _few(m.labels),
                _selection(m),
                f"{one.overall.kept:,}",
                f"{one.overall.elements:,}",
                percent(one.overall.fraction),
                f"{one.file.digest[:12]}…",
            ]
        )
    return _table("Files that are shown, and what they keep of the base's backbone", columns, rows, text_columns=5)


def _selection(described: Manifest) -> str:
    """How the kept parameters were chosen; of a merge, what it was made of."""
    if (merged := described.merged) is not None:
        parents = ", ".join(f"{parent.weight:g} of {parent.digest[:12]}…" for parent in merged.parents)
        return f"{merged.method}: {parents}"
    budget = described.budget.model_dump(exclude_none=True)
    return ", ".join([described.method, *(f"{key} {value}" for key, value in budget.items())])


def _section(report: Report, view: str, pictures: Sequence[Picture], folder: Path) -> Iterable[str]:
    if view == "fractions":
        yield _kinds(report)
    if view == "overlap":
        yield _overlaps(report)
    if view == "layers" and report.left_out:
        names = ", ".join(f"<code>{escape(report.short[kind])}</code>" for kind in report.left_out)
        yield f"<p>There was no room for the kinds {names}.</p>\n"
    labels = list(dict.fromkeys(picture.delta for picture in pictures))
    for i, label in enumerate(labels):
        figures = "".join(_figure(picture, folder) for picture in pictures if picture.delta == label)
        if len(labels) == 1:
            yield figures
        else:
            state = " open" if i < _OPEN_DELTAS else ""
            yield f"<details{state}><summary>{escape(label or '')}</summary>\n{figures}</details>\n"


def _figure(picture: Picture, folder: Path) -> str:
    data = base64.b64encode((folder / picture.file).read_bytes()).decode()
    return (
        f'<figure>\n<img src="data:image/png;base64,{data}" width="{picture.width}" alt="{escape(picture.alt)}">\n'
        f"<figcaption><b>{escape(picture.title)}.</b> {escape(picture.caption)} "
        f"<code>{escape(picture.file)}</code></figcaption>\n</figure>\n"
    )


def _kinds(report: Report) -> str:
    columns = ["kind of tensor", *(one.label for one in report.subjects)]
    tallies = [one.by_kind for one in report.subjects]
    rows = [[short, *(percent(found[kind].fraction) for found in tallies)] for kind, short in report.short.items()]
    return _table("Share of the elements of each kind of tensor that is kept", columns, rows)


def _overlaps(report: Report) -> str:
    columns = ["pair", "kept by the first", "by the second", "by both", "by both, by chance", "Jaccard", "by chance"]
    rows = []
    for pair in sorted(report.pairs, key=lambda p: p.overall.jaccard, reverse=True):
        one = pair.overall
        counts = [f"{n:,.0f}" for n in (one.first, one.second, one.both, one.both_by_chance)]
        indices = [f"{one.jaccard:.4f}", f"{one.jaccard_by_chance:.4f}"]
        rows.append([f"{pair.first} and {pair.second}", *counts, *indices])
    return _table("Positions kept over all tensors, the largest overlap first", columns, rows)


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    def line(tag: str, values: Sequence[str]) -> str:
        kinds = ["text" if i < text_columns else "figure" for i in range(len(values))]
        return "".join(f'<{tag} class="{kind}">{escape(v)}</{tag}>' for kind, v in zip(kinds, values, strict=True))

    head, body = line("th", columns), "".join(f"<tr>{line('td', row)}</tr>\n" for row in rows)
    return (
        f'<div class="table"><table>\n<caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def _few(labels: Sequence[str], most: int = 6) -> str:
    """The first labels, each cut to a readable length."""
    cut = [label if len(label) <= 24 else f"{label[:23]}…" for label in labels[:most]]
    return ", ".join([*cut, *([f"{len(labels) - most} more"] if len(labels) > most else [])]) or "none"
