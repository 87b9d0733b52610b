"""What is checked of a JSON schema before it is compiled: its size in every direction in which compiling takes longer.

Keywords that cannot be enforced are found by llguidance as it compiles a schema, see `serving.grammar.compiling`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from serving.errors import InvalidInputError

MOST_PROPERTIES = 1000
"""Of all objects of a schema. Twice as many optional ones take a third of a second to compile, 10,000 take 12 s."""
MOST_ALTERNATIVES = 256
"""In one ``anyOf``, ``oneOf`` or ``allOf``."""
MOST_VALUES = 1000
"""In one ``enum``."""
DEEPEST = 32
"""Schemas inside one another. llguidance reads JSON of 128 levels, of which a schema takes up to three."""
LARGEST_STEP = 100_000
"""The least common multiple of every ``multipleOf``, as a whole number. It takes 0.2 s to compile, a million 2 s."""

_SUBSCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose values are schemas by name. Beside them a name is a keyword."""
_ALTERNATIVES = ("anyOf", "oneOf", "allOf")
_PLAIN_VALUES = ("enum", "const", "default", "examples", "example")
"""Keywords whose values are no schemas."""


@dataclass
class _Found:
    properties: int = 0
    step: int = 1
    left: list[tuple[Mapping[str, Any], int]] = field(default_factory=list)


def check_schema(schema: Mapping[str, Any], at: str) -> None:
    """Refuse what takes long to compile, or reads another document.

    Raises:
        InvalidInputError: with the keyword's name.
    """
    found = _Found(left=[(schema, 1)])
    while found.left:
        one, depth = found.left.pop()
        if depth > DEEPEST:
            raise InvalidInputError(f"found schemas nested more than {DEEPEST} levels deep; send a flatter one", at=at)
        _check_keywords(one, found, at)
        found.left += [(inner, depth + 1) for inner in _inside(one)]


def _check_keywords(one: Mapping[str, Any], found: _Found, at: str) -> None:
    for keyword in _ALTERNATIVES:
        _check_count(one.get(keyword), MOST_ALTERNATIVES, f"alternatives in {keyword}", at)
    _check_count(one.get("enum"), MOST_VALUES, "values in enum", at)
    found.properties += sum(len(one[k]) for k in _SUBSCHEMAS[:2] if isinstance(one.get(k), Mapping))
    if found.properties > MOST_PROPERTIES:
        raise InvalidInputError(f"found more than {MOST_PROPERTIES} properties, which is the most taken", at=at)
    found.step = math.lcm(found.step, _step(one.get("multipleOf")))
    if found.step > LARGEST_STEP:
        raise InvalidInputError(
            f"found multipleOf {_shown(one['multipleOf'])}; the least common multiple of every multipleOf may be "
            f"{LARGEST_STEP} at most",
            at=at,
        )
    reference = one.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise InvalidInputError(
            f"found $ref {_shown(reference)}, which reads another document; only parts of the schema itself (#/...) "
            "can be referred to",
            at=at,
        )
    for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(one.get(keyword), bool):
            raise InvalidInputError(f"found {keyword} as a boolean, as drafts before 6 have it; send a number", at=at)
    if isinstance(one.get("items"), list):
        raise InvalidInputError("found a list in items, as drafts before 2020-12 have it; send prefixItems", at=at)
    if "x-guidance" in one:
        raise InvalidInputError("found x-guidance, which would change how the schema is enforced; leave it out", at=at)


def _check_count(values: Any, most: int, what: str, at: str) -> None:
    if isinstance(values, list) and len(values) > most:
        raise InvalidInputError(f"found {len(values)} {what}; at most {most} are taken", at=at)


def _inside(one: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for keyword, value in one.items():
        if keyword in _PLAIN_VALUES:
            continue
        inner = value.values() if keyword in _SUBSCHEMAS and isinstance(value, Mapping) else [value]
        for item in inner:
            yield from (part for part in (item if isinstance(item, list) else [item]) if isinstance(part, Mapping))


def _step(value: Any) -> int:
    """A step as the whole number of its last decimal place: 0.25 is 25."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return 1
    return Fraction(str(value)).limit_denominator(10**12).numerator


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
