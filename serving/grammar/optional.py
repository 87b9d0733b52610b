"""Properties that may be left out of one object, whichever schemas make it up: each of them may come next, or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from serving.grammar.schema import every, referred

MOST_OPTIONAL = 100
"""Of one object. With 49,152 tokens 112 can be followed within the limits of `serving.grammar.compiling`."""
_DEEPEST = 100
"""Parts of parts that are counted; what hides behind more is found as a text is followed."""
_Names = frozenset[str]
_NONE: tuple[_Names, _Names] = (frozenset(), frozenset())


def most_optional(schema: Mapping[str, Any]) -> int:
    """How many properties may be left out of the object of a schema that has most of them."""
    counting = _Counting(schema)
    return max(len(named - required) for named, required in map(counting, every(schema)))


class _Counting:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._found: dict[int, tuple[_Names, _Names]] = {}

    def __call__(self, one: Mapping[str, Any], depth: int = 0) -> tuple[_Names, _Names]:
        """The properties of a schema's objects, and those that are required."""
        if id(one) not in self._found and depth < _DEEPEST:
            self._found[id(one)] = _NONE  # where it leads back to itself it adds nothing
            self._found[id(one)] = self._together(one, lambda part: self(part, depth + 1))
        return self._found.get(id(one), _NONE)

    def _together(
        self, one: Mapping[str, Any], of: Callable[[Mapping[str, Any]], tuple[_Names, _Names]]
    ) -> tuple[_Names, _Names]:
        found = [(_names(one.get("properties")), _names(one.get("required"))), *map(of, self._beside(one))]
        for keyword in ("anyOf", "oneOf"):
            alternatives = map(of, _schemas(one.get(keyword)))
            found.append(max(alternatives, key=lambda names: len(names[0] - names[1]), default=_NONE))
        named, required = zip(*found, strict=True)
        return frozenset().union(*named), frozenset().union(*required)

    def _beside(self, one: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The schemas that an object fits as well."""
        yield from _schemas(one.get("allOf"))
        if isinstance(reference := one.get("$ref"), str):
            yield from _schemas([referred(self._root, reference)])


def _schemas(values: Any) -> list[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, Mapping)] if isinstance(values, list) else []


def _names(values: Any) -> _Names:
    return (
        frozenset(name for name in values if isinstance(name, str))
        if isinstance(values, Mapping | list)
        else frozenset()
    )
