"""The content of a gallery: the deltas' counts, their overlaps and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ken_core.container import DeltaFile
from ken_core.viz.measure import Surroundings
from ken_core.viz.names import place
from ken_core.viz.overlap import Overlap
from ken_core.viz.tally import Tally, tally, total


@dataclass(frozen=True)
class Picture:
    """One PNG file and the texts about it."""

    file: str
    """Name in the gallery's folder."""
    view: str
    """``fractions``, ``overlap``, ``layers`` or ``matrix``."""
    delta: str | None
    """Label of the delta that the picture shows, None for a picture of several deltas."""
    title: str
    caption: str
    """How to read the picture."""
    alt: str
    width: int
    """The width in pixels at which to show the picture."""


@dataclass(frozen=True)
class Subject:
    """A delta that is shown."""

    label: str
    """The file's name without suffix, made different from other deltas' labels."""
    file: DeltaFile
    tallies: Mapping[str, Tally]
    """The counts of every tensor of the base."""
    whole: tuple[str, ...]
    """Tensors of the base that change without a mask; they count as kept in full."""
    ranks: Mapping[str, int]
    """The ranks of the low-rank shifts among `whole`, by tensor."""
    surroundings: Mapping[str, Surroundings]
    """Kept neighbours in each matrix that is drawn on its own."""

    @property
    def overall(self) -> Tally:
        return total(self.tallies.values())

    @property
    def by_kind(self) -> dict[str, Tally]:
        return tally(self.tallies, lambda name: place(name).kind)

    @property
    def by_layer(self) -> dict[int | None, Tally]:
        """None: the tensors that belong to no layer."""
        return tally(self.tallies, lambda name: place(name).layer)


@dataclass(frozen=True)
class Pair:
    """Two deltas, by their labels, and the overlap of the positions they keep."""

    first: str
    second: str
    overall: Overlap
    layers: Mapping[int | None, Overlap]
    """None: the tensors that belong to no layer."""


@dataclass(frozen=True)
class Report:
    """A gallery that was written."""

    folder: Path
    base: str
    subjects: tuple[Subject, ...]
    pairs: tuple[Pair, ...]
    pictures: tuple[Picture, ...]
    short: Mapping[str, str]
    """Kind of tensor -> a short name for it."""
    left_out: tuple[str, ...]
    """Kinds of matrices for which there was no room in the layer-wise view."""
