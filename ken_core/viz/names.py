"""A tensor's place in its model, read from its name alone: which layer, which kind of tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Layer and kind of a tensor; `layer` is None and `stem` empty if it belongs to no numbered layer."""

    layer: int | None
    kind: str
    """The name without its layer's number: the same for the same tensor of every layer."""
    stem: str
    """The part of the name before the number, for example ``encoder.layer``."""


def place(name: str) -> Place:
    """Read a dotted name: its first component that is a whole number is the layer.

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

    Short names leave out ``.weight``, and the part before the layer's number if it is the same for all layers.
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
