"""What cannot be enforced is refused by its keyword's name, and what would take long is refused at all."""

from __future__ import annotations

import itertools
import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ken_core import open_base
from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError, OverloadedError
from serving.grammar import patience
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
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf whose alternatives cannot be"),
        ({"type": "foo"}, "Invalid type: foo"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "minimum"),
        ({"enum": []}, "Unsatisfiable"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"$ref": "#"}, "no text fits"),
        ({"type": "object", "required": "a"}, "required"),
        ({"properties": []}, "properties"),
        (
            {"anyOf": [{"type": "object", "properties": {f"k{i}{j}": {} for j in "abc"}} for i in range(256)]},
            "properties that may",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_enforced_is_named(schema: dict[str, Any], name: str, encoder: Encoder) -> None:
    assert name in refusal(json_of(schema, "here"), encoder)


def names(start: int, stop: int) -> dict[str, Any]:
    return {f"field_{i}": {"anyOf": [{"type": "string"}, {"type": "null"}]} for i in range(start, stop)}


LISTS = [{"type": "array", "items": {"$ref": "#/$defs/a"}}] * 200
LARGE: dict[str, tuple[dict[str, Any], str]] = {
    "optional ones": ({"type": "object", "properties": names(0, 100)}, '{"field_3": null, "field_99": "a"}'),
    "required ones": (
        {"type": "object", "properties": names(0, 400), "required": [*names(0, 400)]},
        json.dumps(dict.fromkeys(names(0, 400), "a")),
    ),
    "behind others": (
        {"type": "array", "items": {"type": "object", "properties": {"a": {"properties": names(0, 100)}}}},
        '[{"a": {"field_50": "a"}}]',
    ),
    "of several": (
        {"allOf": [{"type": "object", "properties": names(k, k + 50)} for k in (0, 50)]},
        '{"field_1": "a", "field_60": null}',
    ),
}


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Encoder:
    base = open_base(str(smollm2))
    return Encoder(base, base.config, {})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [*LISTS, {"type": "integer"}]}}},
        {"anyOf": [{"type": "object", "properties": names(i, i + 20)} for i in range(0, 1000, 20)]},
        {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"anyOf": [{"properties": names(0, 100)}] * 2}},
            "required": ["a", "b"],
        },
    ],
    ids=["lists", "objects", "behind others"],
)
def test_what_could_not_be_followed_is_refused_before_a_text_begins(schema: dict[str, Any], real: Encoder) -> None:
    assert "send fewer of them in one place" in refusal(json_of(schema, "here"), real)


@pytest.mark.parametrize(("schema", "text"), LARGE.values(), ids=LARGE)
def test_texts_of_the_largest_objects_can_be_followed(schema: dict[str, Any], text: str, real: Encoder) -> None:
    matcher = finish(compiled(json_of(schema, "here"), real, VOCABULARIES))
    for token in real.prompt(text, special=False):
        assert np.frombuffer(matcher.compute_logit_bias(), np.uint8)[token], matcher.get_error()
        assert matcher.consume_token(token), matcher.get_error()
    matcher.compute_logit_bias()
    assert matcher.is_accepting(), matcher.get_error()


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
    "hundreds of properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string"} for i in range(400)},
        "required": [f"p{i}" for i in range(400)],
    },
    "patterns of names": {"patternProperties": {f"^p{i}x.*y{i}$": {"type": "integer"} for i in range(64)}},
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
        lambda: match_of("a\\", "here"),
        lambda: match_of("a" + "\\" * 5, "here"),
    ):
        with pytest.raises(InvalidInputError) as refused:
            make()
        assert refused.value.at == "here"


def test_a_compilation_that_takes_too_long_is_given_up_and_two_of_them_hold_up_others(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MOST_SECONDS", 0.05)
    impatient, gate = patience.Patience(), threading.Event()
    for _ in range(patience.MOST_LATE):
        with pytest.raises(InvalidInputError, match="here: it takes more than"):
            impatient(gate.wait, "here")
    with pytest.raises(OverloadedError) as refused:
        finish(compiled(one_of(["a"], "here"), encoder, VOCABULARIES, impatient))
    assert refused.value.retry_after
    monkeypatch.setattr(patience, "MOST_SECONDS", 20)  # a thread may take a while to start
    gate.set()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(OverloadedError):
            assert impatient(lambda: "again", "here") == "again"
            return
    pytest.fail("it never ran again")


def test_all_parts_of_a_grammar_have_the_time_of_one(encoder: Encoder) -> None:
    taken: list[float] = []

    class Slow(patience.Patience):
        def __call__(self, work: Any, at: str, before: float = 0.0) -> Any:
            taken.append(before)
            time.sleep(0.01)
            return super().__call__(work, at, before)

    parts = [one_of([letter], "here") for letter in "abc"]
    finish(compiled(Grammar(" | ".join(part.rule for part in parts), "here", parts), encoder, VOCABULARIES, Slow()))
    assert taken[0] == 0
    assert all(after >= before + 0.01 for before, after in itertools.pairwise(taken))


def test_what_is_left_of_the_time_bounds_the_next_part() -> None:
    with pytest.raises(InvalidInputError, match="here: it takes more than 10 s"):
        patience.Patience()(threading.Event().wait, "here", patience.MOST_SECONDS - 0.01)


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


def test_tasks_of_one_tokenizer_share_a_vocabulary_and_few_are_kept(language_tasks: LanguageTasks) -> None:
    made = Vocabularies()
    first, second = (Encoder(language_tasks.base, language_tasks.base.config, {}) for _ in range(2))
    assert made.of(first, "here") is made.of(second, "there")
    assert len(made._made) == 1
    for number in range(6):
        second.vocabulary_digest = str(number)
        made.of(second, "here")
    assert len(made._made) == 4
