"""Objects that list their properties and leave open whether there may be others get no others.

Every object without them fits the schema too. A model that may add properties does so without end, and names its own
instead of those that are not required; other servers close such objects as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.grammar.schema import PLAIN_VALUES, SUBSCHEMAS, inside

_COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
_OPENING = (*_COMBINING, "additionalProperties", "patternProperties")
"""Keywords that say, or may say, what other properties there are."""


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema of which no object takes properties that it does not list, unless it says so.

    A schema that puts objects together of several schemas (by ``allOf``, or by ``$ref`` and others beside properties)
    is left as it is: what one of them does not list, another may.
    """
    return schema if _combines(schema) else _closed(schema)


def _combines(schema: Mapping[str, Any]) -> bool:
    left = [schema]
    while left:
        one = left.pop()
        parts = one.get("allOf")
        if isinstance(parts, list) and len(parts) > 1:
            return True
        if "properties" in one and any(keyword in one for keyword in _COMBINING):
            return True
        left += inside(one)
    return False


def _closed(one: Mapping[str, Any]) -> dict[str, Any]:
    made = {keyword: _closed_within(keyword, value) for keyword, value in one.items()}
    if isinstance(one.get("properties"), Mapping) and not any(keyword in one for keyword in _OPENING):
        made["additionalProperties"] = False
    return made


def _closed_within(keyword: str, value: Any) -> Any:
    if keyword in PLAIN_VALUES:
        return value
    if keyword in SUBSCHEMAS and isinstance(value, Mapping):
        return {name: _closed_if_schema(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_closed_if_schema(inner) for inner in value]
    return _closed_if_schema(value)


def _closed_if_schema(value: Any) -> Any:
    return _closed(value) if isinstance(value, Mapping) else value
