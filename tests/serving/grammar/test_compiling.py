"""What cannot be enforced is refused by its keyword's name, and what would take long is refused at all."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ken_core import open_base
from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError
from serving.grammar.compiling import compiled
from serving.grammar.grammar import MOST_BYTES, Grammar, json_of, match_of, one_of
from serving.grammar.vocabulary import Vocabularies
from serving.workers.steps import finish
from tests.tiny_language_tasks import LanguageTasks
from tests.tiny_tokenizers import WRITERS

VOCABULARIES = Vocabularies()


@pytest.fixture(scope="module")
def encoder(language_tasks: LanguageTasks) -> Encoder:
    return Encoder(language_tasks.base, language_tasks.base.config, {})


def refusal(grammar: Grammar, encoder: Encoder) -> str:
    with pytest.raises(InvalidInputError) as refused:
        finish(compiled(grammar, encoder, VOCABULARIES))
    assert refused.value.at == "here"
    return str(refused.value)


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {"type": "string"}}, "contains"),
        ({"if": {}, "then": {}}, "if, then"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"propertyNames": {"pattern": "^a"}}, "propertyNames"),
        ({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"not": {}}}}}}, "not"),
        ({"type": "string", "format": "path"}, "format 'path'"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
        ({"type": "foo"}, "Invalid type: foo"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "minimum"),
        ({"enum": []}, "Unsatisfiable"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"$ref": "#"}, "no text fits"),
        ({"type": "object", "required": "a"}, "required"),
        ({"properties": []}, "properties"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_enforced_is_named(schema: dict[str, Any], name: str, encoder: Encoder) -> None:
    assert name in refusal(json_of(schema, "here"), encoder)


BOMBS: dict[str, Any] = {
    "a pattern of a million": {"type": "string", "pattern": "^(a{1000}){1000}$"},
    "letters of a million": {"type": "string", "pattern": r"^(\p{L}{1,1000}){1,1000}$"},
    "any text, then letters": {"type": "string", "pattern": "^(.*[ab].{200}){9}$"},
    "nested parentheses": {"type": "string", "pattern": "(" * 1000 + "a" + ")" * 1000},
    "lists in lists": {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}},
    "alternatives of alternatives": {
        "$ref": "#/$defs/a0",
        "$defs": {
            **{
                f"a{i}": {
                    "allOf": [
                        {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"type": "object", "properties": {f"{k}{i}": {}}}]}
                        for k in "pq"
                    ]
                }
                for i in range(20)
            },
            "a20": {"type": "object"},
        },
    },
    "a property of each property": {
        "$ref": "#/$defs/a0",
        "$defs": {
            **{
                f"a{i}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/a{i + 1}"} for k in "xyz"}}
                for i in range(30)
            },
            "a30": {"type": "string"},
        },
    },
    "a thousand properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}},
    "a long text": {"const": "x" * (MOST_BYTES - 100)},
    "circles": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}},
}


@pytest.mark.parametrize("schema", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_compiled_or_refused_in_seconds(schema: Any, encoder: Encoder) -> None:
    began = time.process_time()
    with suppress(InvalidInputError):
        finish(compiled(json_of(schema, "here"), encoder, VOCABULARIES))
    assert time.process_time() - began < 60  # without limits some would take minutes or all memory


def test_what_is_too_large_is_refused_before_it_is_compiled() -> None:
    for make in (
        lambda: json_of({"const": "x" * MOST_BYTES}, "here"),
        lambda: match_of("a" * (MOST_BYTES + 1), "here"),
        lambda: one_of(["a" * 70_000, "b" * 70_000], "here"),
        lambda: one_of([str(i) for i in range(1001)], "here"),
        lambda: one_of([], "here"),
        lambda: one_of(["a", ""], "here"),
        lambda: json_of(False, "here"),
    ):
        with pytest.raises(InvalidInputError) as refused:
            make()
        assert refused.value.at == "here"


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", "a{1000000}{1000000}", r"\1(a)"])
def test_a_pattern_that_is_none_is_refused(pattern: str, encoder: Encoder) -> None:
    assert "cannot be enforced" in refusal(match_of(pattern, "here"), encoder)


@pytest.mark.parametrize("written", WRITERS)
def test_tokenizers_whose_tokens_do_not_join_to_text_are_refused(
    written: str, language_tasks: LanguageTasks, tmp_path: Path
) -> None:
    WRITERS[written](tmp_path)
    (tmp_path / "config.json").write_bytes((language_tasks.path / "config.json").read_bytes())
    encoder = Encoder(_with_tokenizer(language_tasks, tmp_path), language_tasks.base.config, {})
    if written == "word pieces":
        assert "do not join to text" in refusal(one_of(["rain"], "here"), encoder)
    else:
        assert finish(compiled(one_of(["the river"], "here"), encoder, VOCABULARIES))


def _with_tokenizer(tasks: LanguageTasks, folder: Path) -> Any:
    for path in tasks.path.glob("*.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
    return open_base(str(folder))


def test_tasks_of_one_tokenizer_share_a_vocabulary_and_it_goes_with_them(language_tasks: LanguageTasks) -> None:
    made = Vocabularies()
    encoder = Encoder(language_tasks.base, language_tasks.base.config, {})
    assert made.of(encoder, "here") is made.of(encoder, "there")
    del encoder
    assert len(made._made) == 0
