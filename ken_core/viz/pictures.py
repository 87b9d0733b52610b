"""The pictures of a gallery: each is drawn and gets a file name, title, caption and alternative text.

Importing this module needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ken_core.viz.draw_fractions import draw_fractions
from ken_core.viz.draw_overlap import draw_layer_overlaps, draw_overlap_matrix
from ken_core.viz.draw_views import draw_layer_shifts, draw_layers, draw_matrix, draw_shift
from ken_core.viz.labels import safe_file_part
from ken_core.viz.measure import Surroundings
from ken_core.viz.report import Pair, Picture, Subject
from ken_core.viz.survey import Shift, Survey, View
from ken_core.viz.tally import percent, total

Made = tuple[Picture, bytes]
"""A picture and its PNG file."""

_NEIGHBOURS = (
    "for each element, kept itself or not, how many of the elements above, below, left and right of it are kept "
    "(0 to 4; outside the matrix nothing is)"
)
_SHIFTED = (
    "How far each element is shifted, whatever the direction. A product of two factors of low rank is added to the "
    "matrix, so every element changes, and none is kept or left out."
)


def views(
    number: int, label: str, found: Survey, layers: Mapping[str, Mapping[int, str]], short: Mapping[str, str]
) -> Iterator[Made]:
    """The views of the paper, for one delta; and the sizes of its low-rank shifts, which have no kept elements.

    Args:
        number: the delta's number, from 1.
        layers: kind -> layer -> name, for the kinds that are shown across layers.
        short: kind -> a short name for it.
    """
    for kind, names in layers.items():
        alike = [(layer, found.layered[name]) for layer, name in names.items() if name in found.layered]
        if alike:
            yield _layers(number, label, short[kind], alike)
        shifted = [(layer, found.layered_shifts[name]) for layer, name in names.items() if name in found.layered_shifts]
        if shifted:
            yield _layer_shifts(number, label, short[kind], shifted)
    for name, view in found.single.items():
        yield _matrix(number, label, view, found.surroundings[name])
    for shift in found.single_shifts.values():
        yield _shift(number, label, shift)


def fractions(subjects: Sequence[Subject], short: Mapping[str, str]) -> Iterator[Made]:
    """The kept fraction of each delta by layer and kind, in one scale of colours."""
    top = max(one.fraction for subject in subjects for one in subject.tallies.values()) or 1.0
    for number, subject in enumerate(subjects, 1):
        yield _fractions(number, subject, short, top)


def overlaps(labels: Sequence[str], pairs: Sequence[Pair]) -> Iterator[Made]:
    """The overlap of deltas; no picture for a single delta."""
    if len(labels) > 2:
        yield _overlap_matrix(labels, pairs)
    if pairs:
        yield _layer_overlaps(pairs)


def _matrix(number: int, label: str, view: View, around: Surroundings) -> Made:
    if view.tally.kept == 0:
        clustering = "Nothing of it is kept."
    else:
        clustering = (
            f"A kept element has {around.mean:.2f} kept neighbours on average; "
            f"at random positions it would have {around.by_chance:.2f}."
        )
    title = f"{label}: {view.name}"
    drawing = draw_matrix(title, _size(view), view)
    picture = Picture(
        file=f"matrix.{number:02d}-{safe_file_part(label)}.{safe_file_part(view.name)}.png",
        view="matrix",
        delta=label,
        title=title,
        caption=f"First picture: what is kept. Second: {_NEIGHBOURS}. {_blocks(view)} {clustering}",
        alt=f"{view.name} of {label}, {_size(view)}. {clustering}",
        width=drawing.width,
    )
    return picture, drawing.png


def _layers(number: int, label: str, kind: str, alike: Sequence[tuple[int, View]]) -> Made:
    shares = {layer: view.tally.fraction for layer, view in alike}
    most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
    title = f"{label}: {kind} in every layer"
    everything = total(view.tally for _, view in alike)
    note = f"{everything.kept:,} of {everything.elements:,} elements kept ({percent(everything.fraction)})"
    drawing = draw_layers(title, note, alike)
    picture = Picture(
        file=f"layers.{number:02d}-{safe_file_part(label)}.{safe_file_part(kind)}.png",
        view="layers",
        delta=label,
        title=title,
        caption=f"Two pictures a layer. Above: what is kept. Below: {_NEIGHBOURS}. {_blocks(alike[0][1])} "
        "All layers share one scale of colours; another figure has its own.",
        alt=f"{kind} of {label} in {len(alike)} layers: most is kept in layer {most} ({percent(shares[most])}), "
        f"least in layer {least} ({percent(shares[least])}).",
        width=drawing.width,
    )
    return picture, drawing.png


def _shift(number: int, label: str, shift: Shift) -> Made:
    title = f"{label}: {shift.name}"
    note = f"{shift.rows:,} × {shift.columns:,} elements (rows × columns), low rank {shift.rank}: changes every element"
    drawing = draw_shift(title, note, shift)
    picture = Picture(
        file=f"matrix.{number:02d}-{safe_file_part(label)}.{safe_file_part(shift.name)}.png",
        view="matrix",
        delta=label,
        title=title,
        caption=f"{_SHIFTED} {_points(shift)}",
        alt=f"{shift.name} of {label}, {note}; the mean size of the shift is {shift.sizes.mean():.3g}.",
        width=drawing.width,
    )
    return picture, drawing.png


def _layer_shifts(number: int, label: str, kind: str, shifts: Sequence[tuple[int, Shift]]) -> Made:
    means = {layer: float(shift.sizes.mean()) for layer, shift in shifts}
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    title = f"{label}: shift of {kind} in every layer"
    drawing = draw_layer_shifts(title, "of low rank: changes every element", shifts)
    picture = Picture(
        file=f"layers.{number:02d}-{safe_file_part(label)}.{safe_file_part(kind)}.shift.png",
        view="layers",
        delta=label,
        title=title,
        caption=f"{_SHIFTED} {_points(shifts[0][1])} "
        "All layers share one scale of colours; another figure has its own.",
        alt=f"Mean size of the shift of {kind} of {label} in {len(shifts)} layers: largest in layer {most} "
        f"({means[most]:.3g}), smallest in layer {least} ({means[least]:.3g}).",
        width=drawing.width,
    )
    return picture, drawing.png


def _fractions(number: int, subject: Subject, short: Mapping[str, str], top: float) -> Made:
    title = f"{subject.label}: fraction kept by layer and kind of tensor"
    note = (
        f"{subject.overall.kept:,} of {subject.overall.elements:,} elements kept ({percent(subject.overall.fraction)})"
    )
    by_kind = {short[kind]: one.fraction for kind, one in subject.by_kind.items()}
    most, least = max(by_kind, key=by_kind.__getitem__), min(by_kind, key=by_kind.__getitem__)
    named = ", ".join(
        f"{name} (low rank {subject.ranks[name]})" if name in subject.ranks else name for name in subject.whole
    )
    whole = f" Changed as a whole and counted as kept in full: {named}." if named else ""
    drawing = draw_fractions(title, note, subject.tallies, short, top)
    picture = Picture(
        file=f"fractions.{number:02d}-{safe_file_part(subject.label)}.png",
        view="fractions",
        delta=subject.label,
        title=title,
        caption="A number is the percentage of a tensor's elements that is kept; a dash: the layer has no such tensor. "
        "In the single column: tensors that belong to no layer. Colours are on a square-root scale, the same for all "
        "deltas of this page." + whole,
        alt=f"Of {subject.label}, {percent(subject.overall.fraction)} is kept: most of {most} "
        f"({percent(by_kind[most])}), least of {least} ({percent(by_kind[least])}).",
        width=drawing.width,
    )
    return picture, drawing.png


def _layer_overlaps(pairs: Sequence[Pair]) -> Made:
    found = [pair.overall for pair in pairs]
    mean = sum(one.jaccard for one in found) / len(found)
    chance = sum(one.jaccard_by_chance for one in found) / len(found)
    overall = f"over all layers {mean:.3f}, by chance {chance:.3f}"
    overall = overall if len(pairs) == 1 else f"mean of {len(pairs)} pairs {overall}"
    drawing = draw_layer_overlaps("Overlap of kept positions by layer", f"Jaccard index, {overall}", pairs)
    picture = Picture(
        file="overlap-by-layer.png",
        view="overlap",
        delta=None,
        title="Overlap of kept positions by layer",
        caption="The Jaccard index is the number of positions both deltas keep over the number that either keeps: "
        "1 means the same positions, 0 none in common. Dotted: what is expected where each delta keeps as many "
        "elements of every tensor as it does, but at random positions.",
        alt=f"Jaccard index of the kept positions by layer; {overall}.",
        width=drawing.width,
    )
    return picture, drawing.png


def _overlap_matrix(labels: Sequence[str], pairs: Sequence[Pair]) -> Made:
    most = max(pairs, key=lambda pair: pair.overall.jaccard)
    drawing = draw_overlap_matrix("Overlap of kept positions, every two deltas", "", labels, pairs)
    picture = Picture(
        file="overlap.png",
        view="overlap",
        delta=None,
        title="Overlap of kept positions, every two deltas",
        caption="Jaccard index over all tensors. First: what was found. Second, in the same colours: what is expected "
        "where each delta keeps as many elements of every tensor as it does, but at random positions.",
        alt=f"Heat maps of the Jaccard index of {len(labels)} deltas; the highest is {most.overall.jaccard:.3f}, of "
        f"{most.first} and {most.second}, where chance gives {most.overall.jaccard_by_chance:.3f}.",
        width=drawing.width,
    )
    return picture, drawing.png


def _size(view: View) -> str:
    kept = f"{view.tally.kept:,} kept ({percent(view.tally.fraction)})"
    return f"{view.rows:,} × {view.columns:,} elements (rows × columns), {kept}"


def _points(shift: Shift) -> str:
    if not shift.pooled:
        return "One point is one element."
    height, width = shift.block
    return f"One point is the mean of a block of {height} × {width} elements."


def _blocks(view: View) -> str:
    if not view.pooled:
        return "One point is one element; grey: not kept, or no kept neighbour."
    height, width = view.block
    return f"One point is the mean of a block of {height} × {width} elements; grey: exactly none in it."
