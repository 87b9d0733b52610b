"""Where a tensor stands in its model, read from its name alone: which layer, which kind of tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """`layer` is None and `stem` empty for a tensor that belongs to no numbered layer."""

    layer: int | None
    kind: str
    """The name without its layer's number: the same for the same tensor of every layer."""
    stem: str
    """What stands before the number: ``encoder.layer``."""


def place(name: str) -> Place:
    """The first component of a dotted name that is a whole number is the layer.

    ``encoder.layer.3.output.dense.weight`` -> layer 3, kind ``encoder.layer.output.dense.weight``. Later numbers
    (an expert's, a sub-layer's) stay part of the kind.
    """
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isascii() and part.isdigit():
            return Place(int(part), ".".join(parts[:i] + parts[i + 1 :]), ".".join(parts[:i]))
    return Place(None, name, "")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Kind -> a name for it short enough for an axis, different for every kind.

    Leaves out ``.weight``, and what stands before the layer's number where that is the same for all layers.
    """
    places = {p.kind: p for p in map(place, names)}
    stems = {p.stem for p in places.values() if p.layer is not None}
    stem = f"{next(iter(stems))}." if len(stems) == 1 else ""
    inner = {kind: kind.removeprefix(stem) if p.layer is not None else kind for kind, p in places.items()}
    bare = {kind: short.removesuffix(".weight") for kind, short in inner.items()}
    for short in (bare, inner):
        if len(set(short.values())) == len(short):
            return short
    return {kind: kind for kind in places}
