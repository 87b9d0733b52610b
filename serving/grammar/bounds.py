"""Exclusive bounds of numbers that llguidance takes for inclusive ones: whole ones less than 1 from the other bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from serving.grammar.schema import every

_COMBINING = ("anyOf", "oneOf", "$ref")
_SAYING_NO_BOUND = frozenset(
    {"type", "$schema", "$id", "$defs", "definitions", "title", "description", "default", "example", "examples"}
    | {"$comment", "deprecated", "readOnly", "writeOnly", "allOf", *_COMBINING}
)
"""Keywords beside which one part of a schema is the whole of it."""


def lets_a_bound_through(schema: Mapping[str, Any]) -> bool:
    """Whether a number may be an exclusive bound of a schema.

    Where schemas are put together, so may be the bounds of any two of them, and of what is within them.
    """
    schemas = list(every(schema))
    return _together(schemas) if any(map(_combines, schemas)) else any(_together([one]) for one in schemas)


def _combines(one: Mapping[str, Any]) -> bool:
    parts = one.get("allOf")
    found = len(parts) if isinstance(parts, list) else 0
    return found + sum(keyword in one for keyword in _COMBINING) + (not _SAYING_NO_BOUND.issuperset(one)) > 1


def _together(schemas: Iterable[Mapping[str, Any]]) -> bool:
    some = list(schemas)
    least, most = _numbers(some, "exclusiveMinimum"), _numbers(some, "exclusiveMaximum")
    above = {math.floor(bound) for bound in most + _numbers(some, "maximum")}
    below = {math.ceil(bound) for bound in least + _numbers(some, "minimum")}
    return not above.isdisjoint(least) or not below.isdisjoint(most)


def _numbers(schemas: Iterable[Mapping[str, Any]], keyword: str) -> list[int | float]:
    found = (one.get(keyword) for one in schemas)
    numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
    return [number for number in numbers if math.isfinite(number)]
