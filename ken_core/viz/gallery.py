"""The gallery: `visualize` draws every picture of some deltas of one base, and a page that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from pathlib import Path

from ken_core import deltafile
from ken_core.checkpoint import Checkpoint
from ken_core.container import DeltaFile
from ken_core.fingerprint import Fingerprint
from ken_core.new_folder import new_folder
from ken_core.viz.choice import Shapes, layered_kinds, matching, typical
from ken_core.viz.errors import require_matplotlib
from ken_core.viz.labels import labels_of
from ken_core.viz.names import place, short_names
from ken_core.viz.overlap import Overlap, Packed, overlap
from ken_core.viz.page import PAGE, page
from ken_core.viz.report import Pair, Picture, Report, Subject
from ken_core.viz.survey import survey
from ken_core.writing import writing

_MOST_MATRICES = 12
"""Matrices drawn one by one by default, in all deltas together; nobody compares more pictures."""
_MOST_KINDS = 16
"""Kinds in the layer-wise view of a delta; models in which every expert has its own name have hundreds of kinds."""

Progress = Callable[[int, int, str], None]
"""Called with the number of pictures made, the number of all pictures, and the view that the last one shows."""


@dataclass(frozen=True)
class _Plan:
    """The pictures to draw of every delta of a base."""

    shapes: Shapes
    single: list[str]
    layers: Mapping[str, Mapping[int, str]]
    """Kind -> layer -> name, for the kinds in the layer-wise view."""
    left_out: tuple[str, ...]

    @property
    def layered(self) -> list[str]:
        return [name for layers in self.layers.values() for name in layers.values()]

    def pictures(self, deltas: int) -> int:
        """How many pictures there will be."""
        return deltas * (1 + len(self.layers) + len(self.single)) + min(2, deltas * (deltas - 1) // 2)


def visualize(
    base: Checkpoint,
    files: Sequence[DeltaFile],
    out: Path,
    *,
    tensors: Sequence[str] = (),
    identity: Fingerprint | None = None,
    progress: Progress = lambda done, pictures, last: None,
) -> Report:
    """Draw what deltas keep: PNG files, and a page ``index.html`` that contains them all and needs no other file.

    Deltas are read one after another. Of each, only the packed masks stay in memory (a bit for each parameter).

    Args:
        files: opened delta files of this base, one or more.
        out: new folder for the pictures.
        tensors: patterns (``*.query.weight``) for the backbone's tensors that are drawn one by one; by default a few
            matrices of the first, middle and last layer.
        identity: the base's fingerprint, if it is known already.

    Raises:
        MissingMatplotlibError: matplotlib is not installed.
        NoSuchTensorError: a pattern matches nothing.
        BaseMismatchError: a delta belongs to another base.
        DeltaFormatError: a delta file is damaged or hostile.
        OutputExistsError: `out` exists and is not an empty folder.
    """
    require_matplotlib()
    from ken_core.viz import pictures as draw

    plan = _plan(base, len(files), tensors)
    digest = (identity or base.identity).digest
    for file in files:
        if file.manifest.base.fingerprint != digest:
            deltafile.read(file, base, digest)  # raises before time is spent on other deltas
    short = short_names(plan.shapes)
    subjects: list[Subject] = []
    masks: list[Mapping[str, Packed]] = []
    with new_folder(out) as folder:
        shelf = _Shelf(folder, plan.pictures(len(files)), progress)
        for number, (label, file) in enumerate(zip(labels_of([f.path for f in files]), files, strict=True), 1):
            found = survey(deltafile.read(file, base, digest), plan.shapes, plan.single, plan.layered)
            shelf.put(draw.views(number, label, found, plan.layers, short))
            subjects.append(Subject(label, file, found.tallies, found.whole, found.ranks, found.surroundings))
            masks.append(found.packed)
        pairs = _pairs(plan.shapes, subjects, masks)
        shelf.put(draw.fractions(subjects, short))
        shelf.put(draw.overlaps([subject.label for subject in subjects], pairs))
        report = Report(out, _name(base), tuple(subjects), pairs, tuple(shelf.pictures), short, plan.left_out)
        with writing(out):
            (folder / PAGE).write_text(page(report, folder), encoding="utf-8", errors="replace")
    return report


class _Shelf:
    """Puts finished pictures into the folder, and reports progress."""

    def __init__(self, folder: Path, expected: int, progress: Progress) -> None:
        self.pictures: list[Picture] = []
        self._folder, self._expected, self._progress = folder, expected, progress

    def put(self, drawn: Iterable[tuple[Picture, bytes]]) -> None:
        for picture, png in drawn:
            with writing(self._folder):
                (self._folder / picture.file).write_bytes(png)
            self.pictures.append(picture)
            # a kind that has masks in some layers and low-rank shifts in others has a picture more
            self._progress(len(self.pictures), max(self._expected, len(self.pictures)), picture.view)


def _name(base: Checkpoint) -> str:
    """The base's name, as deltas give it."""
    return base.folder.name if Path(base.name).is_dir() else base.name


def _plan(base: Checkpoint, deltas: int, patterns: Sequence[str]) -> _Plan:
    """Plan the pictures. Tensors are in the model's own order, but matrices come first, as the most interesting."""
    held = base.backbone_tensors
    order = [name for name, _ in base.backbone.named_parameters() if name in held and held[name].numel()]
    shapes = {name: tuple(held[name].shape) for name in sorted(order, key=lambda name: held[name].ndim < 2)}
    single = matching(shapes, patterns) if patterns else typical(shapes, max(1, _MOST_MATRICES // max(1, deltas)))
    kinds = layered_kinds(shapes)
    layers = {kind: kinds[kind] for kind in list(kinds)[:_MOST_KINDS]}
    return _Plan(shapes, single, layers, tuple(kinds)[_MOST_KINDS:])


def _pairs(shapes: Shapes, subjects: Sequence[Subject], masks: Sequence[Mapping[str, Packed]]) -> tuple[Pair, ...]:
    pairs = []
    for (ours, first), (theirs, second) in combinations(zip(subjects, masks, strict=True), 2):
        overall, layers = Overlap(), dict[int | None, Overlap]()
        for name, shape in shapes.items():
            if name in ours.whole or name in theirs.whole:
                continue  # a tensor that changes as a whole has no kept positions
            one, layer = overlap(first.get(name), second.get(name), prod(shape)), place(name).layer
            overall, layers[layer] = overall + one, layers.get(layer, Overlap()) + one
        pairs.append(Pair(ours.label, theirs.label, overall, layers))
    return tuple(pairs)
