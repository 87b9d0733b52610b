"""Objects get no properties that their schema does not list, unless it may mean others."""

from __future__ import annotations

from typing import Any

import pytest
from following import VOCABULARIES

from ken_core.tokenization import Encoder
from serving.grammar.closing import closed
from serving.grammar.compiling import compiled
from serving.grammar.grammar import json_of
from serving.workers.steps import finish
from tests.tiny_language_tasks import LanguageTasks

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
        ({**OPEN, "required": ["a"], "minProperties": 1}, {**CLOSED, "required": ["a"], "minProperties": 1}),
        (
            {"$ref": "#/$defs/a", "title": "A", "$defs": {"a": OPEN}},
            {"$ref": "#/$defs/a", "title": "A", "$defs": {"a": CLOSED}},
        ),
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
        {**OPEN, "required": ["a", "b"]},
        {**OPEN, "minProperties": 2},
        {**OPEN, "properties": {}, "minProperties": 1},
        {"items": {**OPEN, "required": ["b"]}},
        {"$ref": "#/$defs/a", "$defs": {"a": OPEN}, "allOf": [{"properties": {"b": {}}, "required": ["b"]}]},
        {"$ref": "#/$defs/a", "$defs": {"a": OPEN}, "anyOf": [{"properties": {"b": {}}}]},
        {"allOf": [OPEN], "anyOf": [{"properties": {"b": {}}}, {"properties": {"c": {}}}]},
        {"anyOf": [OPEN, {"properties": {"b": {}}}], "required": ["c"]},
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


INTEGER = {"type": "integer"}
BASE = {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}
MORE = {"properties": {"b": INTEGER}, "required": ["b"]}
TOGETHER: list[tuple[dict[str, Any], str, str]] = [
    ({**BASE, "required": ["a", "b"]}, '{"a": 1, "b": 2}', '{"a": 1}'),
    ({"$ref": "#/$defs/a", "$defs": {"a": BASE}, "allOf": [MORE]}, '{"a": 1, "b": 2}', '{"a": 1}'),
    ({"$ref": "#/$defs/a", "$defs": {"a": BASE}, "anyOf": [MORE]}, '{"a": 1, "b": 2}', '{"a": 1}'),
    ({"allOf": [BASE], "anyOf": [MORE, {"required": ["c"]}]}, '{"a": 1, "c": "x"}', '{"a": 1}'),
    ({"type": "object", "anyOf": [BASE, MORE], "required": ["id"]}, '{"a": 1, "id": 2}', '{"a": 1}'),
    ({"type": "object", "properties": {}, "minProperties": 1}, '{"a": 1}', "{}"),
    (
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"properties": {"a": INTEGER}}},
            "allOf": [{"properties": {"b": INTEGER}}],
        },
        '{"a": 1, "b": 2}',
        '{"a": "x"}',
    ),
]


@pytest.mark.parametrize(("schema", "fits", "misses"), TOGETHER, ids=str)
def test_what_is_put_together_is_followed(
    schema: dict[str, Any], fits: str, misses: str, language_tasks: LanguageTasks
) -> None:
    encoder = Encoder(language_tasks.base, language_tasks.base.config, {})
    for text, expected in ((fits, True), (misses, False)):
        matcher = finish(compiled(json_of(schema, "here"), encoder, VOCABULARIES))
        ids = encoder.prompt(text, special=False)
        assert (matcher.consume_tokens(ids) and matcher.is_accepting()) == expected, text
