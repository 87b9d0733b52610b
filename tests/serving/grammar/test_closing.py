"""Objects get no properties that their schema does not list, unless it may mean others."""

from __future__ import annotations

from typing import Any

import pytest

from serving.grammar.closing import closed

OPEN: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = {**OPEN, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (OPEN, CLOSED),
        ({"type": "array", "items": OPEN}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [OPEN, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"$defs": {"properties": OPEN}, "$ref": "#/$defs/p"}, {"$defs": {"properties": CLOSED}, "$ref": "#/$defs/p"}),
        ({"allOf": [OPEN]}, {"allOf": [CLOSED]}),
        ({"properties": {"properties": OPEN}}, {"properties": {"properties": CLOSED}, "additionalProperties": False}),
    ],
)
def test_objects_that_list_properties_are_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**OPEN, "additionalProperties": True},
        {**OPEN, "additionalProperties": {"type": "string"}},
        {**OPEN, "patternProperties": {"^x": {}}},
        {"allOf": [OPEN, {"properties": {"b": {}}}]},
        {**OPEN, "$ref": "#/$defs/more", "$defs": {"more": {"properties": {"b": {}}}}},
        {**OPEN, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"enum": [OPEN], "const": OPEN},
    ],
)
def test_others_stay_as_they_are(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_what_says_nothing_of_texts_is_left_out() -> None:
    said = {"type": "object", "properties": {"default": {"type": "string", "default": OPEN, "examples": [[[[]]]]}}}
    assert closed({**said, "allOf": [{}, {}], "default": OPEN}) == {
        "type": "object",
        "properties": {"default": {"type": "string"}},
        "allOf": [{}, {}],
    }
