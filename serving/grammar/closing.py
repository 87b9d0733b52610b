"""Schemas as they are compiled: without what says nothing of texts, and objects closed that seem so.

Objects that list their properties and leave open whether there may be others get no others.
Every object without them fits the schema too; but alternatives of ``oneOf`` are told apart as closed. A model that may
add properties does so without end, and names its own instead of those that are not required; other servers close such
objects as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.grammar.schema import PLAIN_VALUES, SUBSCHEMAS, every

_SAYING_NOTHING = ("default", "example", "examples")
"""Their values may be nested deeper than schemas are read."""
_COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
_OPENING = (*_COMBINING, "additionalProperties", "patternProperties")
"""Keywords that say, or may say, what other properties there are."""


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema of which no object takes properties that it does not list, unless it says so.

    A schema that puts objects together of several schemas (by ``allOf``, or by ``$ref`` and others beside properties or
    one another) is left as it is: what one of them does not list, another may. So is an object that must have
    properties which it does not list.
    """
    return _Rewriting(closes=not _combines(schema)).of(schema)


def _combines(schema: Mapping[str, Any]) -> bool:
    for one in every(schema):
        parts = one.get("allOf")
        if isinstance(parts, list) and len(parts) > 1:
            return True
        if sum(keyword in one for keyword in (*_COMBINING, "properties", "required")) > 1 and any(
            keyword in one for keyword in _COMBINING
        ):
            return True
    return False


def _lists_all(one: Mapping[str, Any]) -> bool:
    """Whether an object lists properties, and all that it must have."""
    properties, required, least = one.get("properties"), one.get("required"), one.get("minProperties", 0)
    if not isinstance(properties, Mapping):
        return False
    names = required if isinstance(required, list) else []
    few = isinstance(least, int | float) and least > len(properties)
    return not few and all(isinstance(name, str) and name in properties for name in names)


class _Rewriting:
    def __init__(self, closes: bool) -> None:
        self._closes = closes

    def of(self, one: Mapping[str, Any]) -> dict[str, Any]:
        made = {
            keyword: self._within(keyword, value) for keyword, value in one.items() if keyword not in _SAYING_NOTHING
        }
        closes = self._closes and _lists_all(one) and not any(keyword in one for keyword in _OPENING)
        return {**made, "additionalProperties": False} if closes else made

    def _within(self, keyword: str, value: Any) -> Any:
        if keyword in PLAIN_VALUES:
            return value
        if keyword in SUBSCHEMAS and isinstance(value, Mapping):
            return {name: self._if_schema(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._if_schema(inner) for inner in value]
        return self._if_schema(value)

    def _if_schema(self, value: Any) -> Any:
        return self.of(value) if isinstance(value, Mapping) else value
