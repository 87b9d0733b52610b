"""JSON that clients send: unknown fields are refused, and null means the same as a field that is left out.

Many clients write null for a field that their caller did not set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

MOST_FIELDS = 1024
"""Of one object whose fields have names; the largest form has some 60."""
_NULL = {"type": "null"}


class Incoming(BaseModel):
    """Base of the models of JSON from clients. A field that may be left out may also be null; its schema says so."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_unset_fields(cls, plain: Any) -> Any:
        if not isinstance(plain, Mapping):
            return plain
        if len(plain) > MOST_FIELDS:  # each that is unknown makes a failure, of which one is told
            raise PydanticCustomError(
                "too_many",
                "found an object of {fields} fields; at most {most} are taken",
                {"fields": len(plain), "most": MOST_FIELDS},
            )
        return {name: value for name, value in plain.items() if value is not None or not cls._may_be_left_out(name)}

    @classmethod
    def _may_be_left_out(cls, name: Any) -> bool:
        return name in cls.model_fields and not cls.model_fields[name].is_required()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        if handler.mode == "serialization":  # the model as an answer, which is null only where its type says so
            return schema
        form = handler.resolve_ref_schema(schema)
        for name, told in form.get("properties", {}).items():
            if cls._may_be_left_out(name):
                form["properties"][name] = _nullable(told)
        return schema


def _without_nulls(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plain.items() if value is not None}


Free = Annotated[dict[str, Any], AfterValidator(_without_nulls)]
"""An object whose fields are checked elsewhere; fields that are null are left out."""

_OF_A_FIELD = ("default", "description", "title", "examples")


def _nullable(told: JsonSchemaValue) -> JsonSchemaValue:
    if told.get("type") == "null" or _NULL in told.get("anyOf", ()):
        return told
    around = {key: told[key] for key in _OF_A_FIELD if key in told}
    inside = {key: value for key, value in told.items() if key not in _OF_A_FIELD}
    if not inside:  # the schema allows everything, null too
        return told
    forms = inside.pop("anyOf") if list(inside) == ["anyOf"] else [inside]
    return {"anyOf": [*forms, _NULL], **around}
