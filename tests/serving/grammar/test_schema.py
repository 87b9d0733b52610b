"""Schemas that would take long, or that say something else than they seem to, are refused before they are compiled."""

from __future__ import annotations

from typing import Any

import pytest

from serving.errors import InvalidInputError
from serving.grammar.schema import DEEPEST, check_schema


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        nested(DEEPEST),
        {"anyOf": [{"const": i} for i in range(256)]},
        {"enum": [str(i) for i in range(1000)]},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(400)}},
        {"$ref": "#/$defs/nothing", "$defs": {"nothing": {}}},
        {"type": "object", "properties": {"x-guidance": {"type": "string"}, "$ref": {"type": "string"}}},
        {"type": "number", "multipleOf": 0.01},
        {"allOf": [{"multipleOf": 0.000001}, {"multipleOf": 0.25}, {"multipleOf": 60}, {"multipleOf": 0.5}]},
        {"multipleOf": 0},
        {"multipleOf": 1e-12},
        {"allOf": [{"type": "integer", "multipleOf": 4}, {"multipleOf": 6}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"more": {"$ref": "#"}}}}},
        {"default": nested(100), "examples": [{"$ref": "http://there"}]},
        {
            "$ref": "#/properties/default",
            "properties": {"default": {"type": "string"}, "a/b": {"$ref": "#/properties/a~1b"}},
        },
        {"$ref": "#/$defs/nowhere"},
        {"minProperties": 2, "required": ["a", "b"]},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_schemas_within_the_limits_pass(schema: dict[str, Any]) -> None:
    check_schema(schema, "here")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (nested(DEEPEST + 1), "more than 32 levels"),
        ({"anyOf": [{"const": i} for i in range(1000)]}, "found 1000 alternatives in anyOf; at most 256"),
        ({"properties": {"a": {"oneOf": [{}] * 257}}}, "257 alternatives in oneOf"),
        ({"items": {"enum": list(range(1001))}}, "1001 values in enum"),
        (
            {"anyOf": [{"properties": {f"p{i}": {} for i in range(k, k + 400)}} for k in (0, 400, 800)]},
            "more than 1000",
        ),
        (
            {
                "items": {
                    "properties": {str(i): {"properties": {"a": {}}} for i in range(400)},
                    "prefixItems": [{"properties": {str(i): {} for i in range(300)}}],
                }
            },
            "more than 1000 properties",
        ),
        ({"type": "object", "x": [{} for _ in range(5000)]}, "more than 5000 schemas"),
        ({"multipleOf": 999_983}, "multipleOf 999983"),
        ({"properties": {"a": {"multipleOf": 4_999_999}}, "title": {"multipleOf": 1e-13}}, "multipleOf"),
        ({"properties": {"a": {"multipleOf": 1e-13}}, "title": {"multipleOf": 4_999_999}}, "multipleOf"),
        ({"multipleOf": 1e-320}, "multipleOf 1e-320; at most 12 decimal places"),
        ({"multipleOf": 1 / 3}, "multipleOf 0.3333333333333333; at most 12 decimal places"),
        ({"multipleOf": 1e300}, "multipleOf 1e"),
        ({"allOf": [{"multipleOf": 0.00997}, {"multipleOf": 1009}]}, "multipleOf"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 1009}]}, "multipleOf"),
        ({"$ref": "http://there/schema.json"}, "another document"),
        ({"properties": {"a": {"$ref": "other.json#/a"}}}, "another document"),
        ({"minimum": 3, "exclusiveMinimum": True}, "exclusiveMinimum as a boolean"),
        ({"items": [{"type": "string"}]}, "prefixItems"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"patternProperties": {f"^p{i}$": {} for i in range(65)}}, "more than 64 patternProperties"),
        ({"minProperties": 2}, "minProperties 2"),
        ({"properties": {f"p{i}": {} for i in range(401)}}, "at most 400 are taken of one"),
        ({"minProperties": 3, "required": ["a", "b"]}, "minProperties 3"),
        ({"minProperties": 3, "required": ["a", "a", "a"]}, "minProperties 3"),
        ({"$ref": "#/default", "default": {"multipleOf": 999_983}}, "no schema within the schema"),
        ({"$ref": "#/examples/0", "examples": [{"x-guidance": {}}]}, "no schema within the schema"),
        ({"items": {"$ref": "#/items/const", "const": {"type": "string"}}}, "no schema within the schema"),
        ({"$ref": "#/%64efault", "default": {}}, "no schema within the schema"),
        ({"$ref": "#/default", "default": None}, "no schema within the schema"),
        ({"$ref": "#a", "default": {"$anchor": "a"}}, "no schema within the schema"),
        ({"properties": {"a": {"$id": "http://there", "$ref": "#/default", "default": {}}}}, "id inside the schema"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_others_are_refused_by_name(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as refused:
        check_schema(schema, "response_format.json_schema.schema")
    assert refused.value.at == "response_format.json_schema.schema"
