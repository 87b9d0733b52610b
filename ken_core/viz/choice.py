"""The choice of a base's matrices to draw: a few that stand for all, or the ones a person asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from ken_core.viz.errors import NoSuchTensorError
from ken_core.viz.names import place

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the base's tensors by name, in the order the model has them."""


def layered_kinds(shapes: Shapes) -> dict[str, dict[int, str]]:
    """Kind -> layer -> name, for the tensors that have two or more axes and belong to a layer."""
    kinds: dict[str, dict[int, str]] = {}
    for name, shape in shapes.items():
        found = place(name)
        if found.layer is not None and len(shape) >= 2:
            kinds.setdefault(found.kind, {})[found.layer] = name
    return {kind: dict(sorted(layers.items())) for kind, layers in kinds.items()}


def typical(shapes: Shapes, most: int) -> list[str]:
    """At most `most` matrices that stand for all: of each kind, those of the first, middle and last layer.

    Where these are too many, those of the first and last layer; where these are too many still, those of the middle
    layer, for as many kinds as there is room for. In a model without numbered layers, the first matrices are chosen.
    """
    kinds = layered_kinds(shapes)
    if not kinds:
        return [name for name, shape in shapes.items() if len(shape) >= 2][:most]
    each = max(1, min(3, most // len(kinds)))
    return [name for layers in list(kinds.values())[:most] for name in _spread(list(layers.values()), each)]


def matching(shapes: Shapes, patterns: Sequence[str]) -> list[str]:
    """Names that match any of the shell-like patterns (``*.query.weight``), in the model's order.

    Raises:
        NoSuchTensorError: a pattern matches no name.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise NoSuchTensorError(
                f"no tensor of the base matches {pattern!r}; its names look like {next(iter(shapes), '')!r}, "
                "and `ken inspect --tensors` lists those a delta changes"
            )
    return [name for name in shapes if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _spread(names: list[str], most: int) -> list[str]:
    """The first, middle and last name; the first and last; or the middle one; as `most` is 3, 2 or 1."""
    middle, last = (len(names) - 1) // 2, len(names) - 1
    places = {3: (0, middle, last), 2: (0, last), 1: (middle,)}[most]
    return [names[i] for i in sorted(set(places))]
