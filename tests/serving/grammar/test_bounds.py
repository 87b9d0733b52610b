"""No number is an exclusive bound: a schema of which one could be is refused, also where schemas are put together."""

from __future__ import annotations

from typing import Any

import pytest
from following import VOCABULARIES

from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError
from serving.grammar.compiling import compiled
from serving.grammar.grammar import json_of
from serving.workers.steps import finish
from tests.tiny_language_tasks import LanguageTasks

POSITIVE: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0}
OBJECT = {"type": "object", "properties": {"a": POSITIVE}}
DEFS = {"$defs": {"p": POSITIVE}}


@pytest.fixture(scope="module")
def encoder(language_tasks: LanguageTasks) -> Encoder:
    return Encoder(language_tasks.base, language_tasks.base.config, {})


@pytest.mark.parametrize(
    "schema",
    [
        {**POSITIVE, "maximum": 0.5},
        {**POSITIVE, "exclusiveMaximum": 0.5},
        {"type": "number", "exclusiveMinimum": 3, "exclusiveMaximum": 3.5},
        {"type": "number", "exclusiveMaximum": -3, "minimum": -3.5},
        {"allOf": [POSITIVE, {"maximum": 0.5}]},
        {**DEFS, "$ref": "#/$defs/p", "maximum": 0.5},
        {"anyOf": [POSITIVE], "maximum": 0.5},
        {"oneOf": [{"maximum": 0.5}], **POSITIVE},
        {**DEFS, "allOf": [{"$ref": "#/$defs/p"}, {"maximum": 0.5}]},
        {**DEFS, "allOf": [{"$ref": "#/$defs/p"}], "maximum": 0.5},
        {**DEFS, "allOf": [{"$ref": "#/$defs/p"}], "anyOf": [{"maximum": 0.5}]},
        {"allOf": [OBJECT, {"properties": {"a": {"maximum": 0.5}}}]},
        {"items": {**DEFS, "$ref": "#/items/$defs/p", "maximum": 0}},
    ],
    ids=str,
)
def test_bounds_that_are_not_enforced_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="here: found an exclusive bound"):
        json_of(schema, "here")


@pytest.mark.parametrize(
    "schema",
    [
        {**POSITIVE, "maximum": 1},
        {**POSITIVE, "maximum": 1e308},
        {"type": "number", "exclusiveMinimum": 0.25, "maximum": 0.5},
        {"allOf": [POSITIVE, {"maximum": 10}]},
        {"allOf": [POSITIVE, {"maximum": -1}], "default": 0},
        {"type": "array", "prefixItems": [POSITIVE, {"type": "number", "maximum": 0.5}]},
        {
            "$defs": {"p": POSITIVE},
            "properties": {
                "a": {"$ref": "#/$defs/p", "description": "a price", "default": 1},
                "b": {"allOf": [{"$ref": "#/$defs/p"}], "title": "B"},
                "c": {"anyOf": [{"type": "number", "maximum": 0.5}, {"type": "null"}], "default": None},
            },
        },
    ],
    ids=str,
)
def test_others_pass(schema: dict[str, Any]) -> None:
    assert json_of(schema, "here")


@pytest.mark.parametrize(
    "schema",
    [
        {**POSITIVE, "maximum": -0.5},
        {"type": "number", "exclusiveMinimum": 3, "exclusiveMaximum": 2.5},
        {"type": "number", "exclusiveMaximum": -3, "minimum": -2.5},
        {"allOf": [POSITIVE, {"maximum": -0.5}]},
    ],
)
def test_bounds_that_nothing_fits_are_refused_as_such(schema: dict[str, Any], encoder: Encoder) -> None:
    with pytest.raises(InvalidInputError, match=r"Unsatisfiable|is greater than"):
        finish(compiled(json_of(schema, "here"), encoder, VOCABULARIES))


@pytest.mark.parametrize(
    ("schema", "bound"),
    [
        ({**POSITIVE, "maximum": 1}, "0"),
        ({"allOf": [POSITIVE, {"maximum": 10}]}, "0"),
        ({**DEFS, "$ref": "#/$defs/p", "maximum": 1}, "0"),
        ({"type": "number", "exclusiveMinimum": -2, "exclusiveMaximum": 1}, "1"),
        ({"anyOf": [{"type": "number", "exclusiveMaximum": -3}], "minimum": -4}, "-3"),
    ],
)
def test_what_passes_does_not_take_its_bound(schema: dict[str, Any], bound: str, encoder: Encoder) -> None:
    matcher = finish(compiled(json_of(schema, "here"), encoder, VOCABULARIES))
    ids = encoder.prompt(bound, special=False)
    assert matcher.validate_tokens(ids) < len(ids) or not (matcher.consume_tokens(ids) and matcher.is_accepting())
