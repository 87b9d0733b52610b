"""Properties that may be left out are counted over all schemas that one object is put together of."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import InvalidInputError
from serving.grammar.grammar import json_of
from serving.grammar.optional import MOST_OPTIONAL, most_optional


def some(start: int, stop: int, *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {} for i in range(start, stop)}, "required": [*required]}


@pytest.mark.parametrize(
    ("schema", "count"),
    [
        ({"type": "string"}, 0),
        (some(0, 5), 5),
        (some(0, 5, "p0", "p1", "other"), 3),
        ({"items": {"properties": {"a": some(0, 7)}}}, 7),
        ({"allOf": [some(0, 4), some(4, 8), {"required": ["p0"]}]}, 7),
        ({"allOf": [some(0, 4), some(0, 4)]}, 4),
        ({**some(0, 4), "$ref": "#/$defs/a", "$defs": {"a": some(4, 9, "p5")}}, 8),
        ({**some(0, 4), "anyOf": [some(4, 6), some(4, 9), {}]}, 9),
        ({"anyOf": [some(0, 4), some(4, 6)]}, 4),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, some(0, 3)]}}}, 3),
        ({"$ref": "#/$defs/a0", "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(5000)}}, 0),
        ({"$ref": 3, "allOf": [1], "anyOf": {}, "properties": [1], "required": [[]]}, 0),
    ],
    ids=lambda value: str(value)[:40],
)
def test_those_of_one_object_are_counted(schema: dict[str, Any], count: int) -> None:
    assert most_optional(schema) == count


def test_more_than_can_be_followed_are_refused() -> None:
    assert json_of(some(0, MOST_OPTIONAL), "here")
    assert json_of(some(0, MOST_OPTIONAL + 1, "p0"), "here")
    with pytest.raises(InvalidInputError, match="here: found an object of 101 properties that may be left out"):
        json_of(some(0, MOST_OPTIONAL + 1), "here")
