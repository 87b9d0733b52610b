"""What a client wants its text to be: OpenAI's ``response_format``, and vLLM's names for the same and more."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import orjson
from pydantic import Field

from serving.errors import InvalidInputError
from serving.grammar.grammar import ANY_OBJECT, Described, Grammar, Schema, json_of, match_of, one_of
from serving.incoming import Incoming

JsonSchemaOfText = dict[str, Any] | bool


class NamedSchema(Incoming):
    """A JSON schema as OpenAI's clients send it. It is enforced whether `strict` or not."""

    name: str = ""
    description: str | None = None
    schema_: JsonSchemaOfText = Field(alias="schema", description="a JSON schema")
    strict: bool | None = Field(None, description="without effect: a schema is always enforced")


class ResponseFormat(Incoming):
    """What a text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = Field(None, description="with the type json_schema")
    schema_: JsonSchemaOfText | None = Field(None, alias="schema", description="with the type json_object")
    value: JsonSchemaOfText | None = Field(None, description="Hugging Face's name of schema")

    def grammar(self, at: str) -> Described | None:
        """None for any text. Raises `InvalidInputError` for two ways of saying it."""
        beside = {"json_object": "schema", "json_schema": "json_schema"}.get(self.type)
        for name, value in (("schema", self.schema_), ("value", self.value), ("json_schema", self.json_schema)):
            if value is not None and beside != ("schema" if name == "value" else name):
                raise InvalidInputError(f"found it beside the type {self.type}; leave one out", at=f"{at}.{name}")
        if self.type == "json_schema":
            if self.json_schema is None:
                raise InvalidInputError("expected it beside the type json_schema", at=f"{at}.json_schema")
            return _json(self.json_schema.schema_, f"{at}.json_schema.schema")
        if self.type == "json_object":
            if self.schema_ is not None:
                return _json(self.schema_, f"{at}.schema")
            return _json(ANY_OBJECT, at) if self.value is None else _json(self.value, f"{at}.value")
        return None


class StructuredOutputs(Incoming):
    """vLLM's form of the same."""

    json_: JsonSchemaOfText | str | None = Field(None, alias="json", description="a JSON schema, or its JSON as a text")
    regex: str | None = Field(None, description="what the whole text matches")
    choice: list[str] | None = Field(None, description="texts, one of which is the whole text")
    json_object: bool | None = Field(None, description="whether the text is any object of JSON")

    def grammars(self, at: str) -> Iterator[Described]:
        if self.json_ is not None:
            yield _json(self.json_, f"{at}.json")
        if self.regex is not None:
            yield _match(self.regex, f"{at}.regex")
        if self.choice is not None:
            yield _one(self.choice, f"{at}.choice")
        if self.json_object:
            yield _json(ANY_OBJECT, f"{at}.json_object")


class WithGrammar(Incoming):
    """Base of forms that say what a text must be, in one way at most."""

    response_format: ResponseFormat | None = Field(None, description="what the text must be: any, or JSON")
    structured_outputs: StructuredOutputs | None = Field(None, description="what the text must be, as vLLM has it")
    guided_json: JsonSchemaOfText | str | None = Field(None, description="an older name of structured_outputs.json")
    guided_regex: str | None = Field(None, description="an older name of structured_outputs.regex")
    guided_choice: list[str] | None = Field(None, description="an older name of structured_outputs.choice")

    def grammar(self) -> Described | None:
        """What the text must be; None: anything.

        Raises:
            InvalidInputError: it is said in two ways.
        """
        found = list(self._grammars())
        if len(found) > 1:
            raise InvalidInputError(f"found it beside {found[0].at}; a text follows one of them", at=found[1].at)
        return found[0] if found else None

    def _grammars(self) -> Iterator[Described]:
        if self.response_format is not None:
            wanted = self.response_format.grammar("response_format")
            yield from () if wanted is None else (wanted,)
        if self.structured_outputs is not None:
            yield from self.structured_outputs.grammars("structured_outputs")
        if self.guided_json is not None:
            yield _json(self.guided_json, "guided_json")
        if self.guided_regex is not None:
            yield _match(self.guided_regex, "guided_regex")
        if self.guided_choice is not None:
            yield _one(self.guided_choice, "guided_choice")


def _json(schema: Schema | str, at: str) -> Described:
    return Described(at, partial(_of_schema, schema, at))


def _match(pattern: str, at: str) -> Described:
    return Described(at, partial(match_of, pattern, at))


def _one(texts: list[str], at: str) -> Described:
    return Described(at, partial(one_of, texts, at))


def _of_schema(schema: Schema | str, at: str) -> Grammar:
    return json_of(_parsed(schema, at) if isinstance(schema, str) else schema, at)


def _parsed(schema: str, at: str) -> Schema:
    try:
        plain = orjson.loads(schema)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"it is no JSON ({error})", at=at) from None
    if not isinstance(plain, dict | bool):
        raise InvalidInputError("expected a JSON schema, which is an object", at=at)
    return plain
