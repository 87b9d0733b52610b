"""What is checked of a JSON schema before it is compiled: its size in every direction in which compiling takes longer.

Keywords that cannot be enforced are found by llguidance as it compiles a schema, see `serving.grammar.compiling`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NoReturn
from urllib.parse import unquote

from serving.errors import InvalidInputError

MOST_SCHEMAS = 5000
"""Of one request, whatever may be one. To look at so many takes 0.03 s."""
MOST_PROPERTIES = 1000
"""Of all objects of a schema. Twice as many optional ones take a third of a second to compile, 10,000 take 12 s."""
MOST_OF_ONE = 400
"""Properties of one object; of those that may be left out fewer are taken, see `serving.grammar.optional`."""
MOST_ALTERNATIVES = 256
"""In one ``anyOf``, ``oneOf`` or ``allOf``."""
MOST_VALUES = 1000
"""In one ``enum``."""
DEEPEST = 32
"""Schemas inside one another. llguidance reads JSON of 128 levels, of which a schema takes up to three."""
LARGEST_STEP = 100_000
"""The least common multiple of every ``multipleOf``, as a whole number. It takes 0.2 s to compile, a million 2 s."""
MOST_PLACES = 12
"""Decimal places of a ``multipleOf``."""
MOST_PATTERNS = 64
"""Of names of properties, in all objects of a schema: each is compared with each. 300 take 9 s."""

SUBSCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose values are schemas by name. Beside them a name is a keyword."""
PLAIN_VALUES = ("enum", "const", "default", "examples", "example")
"""Keywords whose values are no schemas."""
NOWHERE: Mapping[str, Any] = MappingProxyType({})
_ALTERNATIVES = ("anyOf", "oneOf", "allOf")
_LONGEST_SHOWN = 60


def check_schema(schema: Mapping[str, Any], at: str) -> None:
    """Refuse what takes long to compile, reads another document, or is not enforced as it says.

    Raises:
        InvalidInputError: with the keyword's name.
    """
    _Check(schema, at).run()


class _Check:
    """One schema, and what has been found in it."""

    def __init__(self, schema: Mapping[str, Any], at: str) -> None:
        self._root = schema
        self._at = at
        self._properties = self._patterns = 0
        self._step = 1
        self._checked: set[int] = set()
        """The schemas that were looked at, by identity."""
        self._references: list[str] = []

    def run(self) -> None:
        left = [(self._root, 1)]
        while left:
            one, depth = left.pop()
            if depth > DEEPEST:
                self._refuse(f"found schemas nested more than {DEEPEST} levels deep; send a flatter one")
            self._checked.add(id(one))
            if len(self._checked) > MOST_SCHEMAS:
                self._refuse(f"found more than {MOST_SCHEMAS} schemas inside one another, which is the most taken")
            self._count(one)
            self._keywords(one)
            left += [(inner, depth + 1) for inner in inside(one)]
        for reference in self._references:
            if not self._is_checked(reference):
                self._refuse(f"found $ref {_shown(reference)}, which is no schema within the schema")

    def _count(self, one: Mapping[str, Any]) -> None:
        for keyword in _ALTERNATIVES:
            self._bound(one.get(keyword), MOST_ALTERNATIVES, f"alternatives in {keyword}")
        self._bound(one.get("enum"), MOST_VALUES, "values in enum")
        properties, patterns = _size(one.get("properties")), _size(one.get("patternProperties"))
        if properties > MOST_OF_ONE:
            self._refuse(f"found an object with {properties} properties; at most {MOST_OF_ONE} are taken of one")
        self._properties += properties + patterns
        self._patterns += patterns
        if self._properties > MOST_PROPERTIES:
            self._refuse(f"found more than {MOST_PROPERTIES} properties, which is the most taken")
        if self._patterns > MOST_PATTERNS:
            self._refuse(f"found more than {MOST_PATTERNS} patternProperties, which is the most taken")
        step = _step(one.get("multipleOf"))
        if not step:
            self._refuse(
                f"found multipleOf {_shown(one['multipleOf'])}; at most {MOST_PLACES} decimal places are taken of it"
            )
        self._step = math.lcm(self._step, step)
        if self._step > LARGEST_STEP:
            self._refuse(
                f"found multipleOf {_shown(one['multipleOf'])}; the least common multiple of every multipleOf may be "
                f"{LARGEST_STEP} at most"
            )

    def _keywords(self, one: Mapping[str, Any]) -> None:
        reference = one.get("$ref")
        if isinstance(reference, str):
            if not reference.startswith("#"):
                self._refuse(
                    f"found $ref {_shown(reference)}, which reads another document; only parts of the schema itself "
                    "(#/...) can be referred to"
                )
            self._references.append(reference)
        if "$id" in one and one is not self._root:
            self._refuse("found $id inside the schema, which would change what its references mean; leave it out")
        for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(one.get(keyword), bool):
                self._refuse(f"found {keyword} as a boolean, as drafts before 6 have it; send a number")
        if isinstance(one.get("items"), list):
            self._refuse("found a list in items, as drafts before 2020-12 have it; send prefixItems")
        if "x-guidance" in one:
            self._refuse("found x-guidance, which would change how the schema is enforced; leave it out")
        least = one.get("minProperties")
        if isinstance(least, int | float) and least > max(1, _names(one.get("required"))):
            self._refuse(
                f"found minProperties {_shown(least)}, more than 1 and than the properties required, which is not "
                "enforced, since one name may come twice; name properties in required"
            )

    def _bound(self, values: Any, most: int, what: str) -> None:
        if isinstance(values, list) and len(values) > most:
            self._refuse(f"found {len(values)} {what}; at most {most} are taken")

    def _is_checked(self, reference: str) -> bool:
        """Whether a reference within the document leads to what was checked; what leads nowhere is refused later."""
        if reference != "#" and not reference.startswith("#/"):
            return False
        target = referred(self._root, reference)
        return target is NOWHERE or isinstance(target, bool) or id(target) in self._checked

    def _refuse(self, reason: str) -> NoReturn:
        raise InvalidInputError(reason, at=self._at)


def referred(root: Mapping[str, Any], reference: str) -> Any:
    """What a reference within a document (``#``, or ``#/`` and a path) leads to, or `NOWHERE`."""
    target: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        elif isinstance(target, Mapping) and name in target:
            target = target[name]
        else:
            return NOWHERE
    return target


def every(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas within it, and whatever may be one."""
    left = [schema]
    while left:
        one = left.pop()
        yield one
        left += inside(one)


def inside(one: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas right inside a schema, and whatever may be one."""
    for keyword, value in one.items():
        if keyword in PLAIN_VALUES:
            continue
        inner = value.values() if keyword in SUBSCHEMAS and isinstance(value, Mapping) else [value]
        for item in inner:
            yield from (part for part in (item if isinstance(item, list) else [item]) if isinstance(part, Mapping))


def _size(values: Any) -> int:
    return len(values) if isinstance(values, Mapping | list) else 0


def _names(values: Any) -> int:
    return len({name for name in values if isinstance(name, str)}) if isinstance(values, list) else 0


def _step(value: Any) -> int:
    """A step as the whole number of its last decimal place, 0.25 as 25; 0: it has too many places."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return 1
    step = Decimal(repr(value)).normalize()
    places = max(0, -int(step.as_tuple().exponent))
    return int(step.scaleb(places)) if places <= MOST_PLACES else 0


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."
