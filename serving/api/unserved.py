"""Fields of other protocols that this server does not act on: which values are taken, and how others are refused.

Clients send many fields at values that change nothing. Those values are taken; a value that asks for something which is
not done is refused by name, since an answer without it would be quietly wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import orjson
from pydantic import GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from serving.incoming import Incoming

_SHOWN = 60
_NULL = {"type": "null"}


class WithForeignFields(Incoming):
    """Base of forms whose clients send fields that this server does not act on.

    Attributes:
        WITHOUT_EFFECT: fields that are taken at any value.
        ONLY_AT: the values at which further fields are taken, beside null.
    """

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()
    ONLY_AT: ClassVar[Mapping[str, Sequence[Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_foreign_fields(cls, plain: Any) -> Any:
        if not isinstance(plain, Mapping):
            return plain
        own = dict(plain)
        for name in cls.WITHOUT_EFFECT & own.keys():
            del own[name]
        found = [_refusal(name, own.pop(name), values) for name, values in cls.ONLY_AT.items() if name in own]
        if refusals := [refusal for refusal in found if refusal is not None]:
            raise ValidationError.from_exception_data(cls.__name__, refusals)
        return own

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = super().__get_pydantic_json_schema__(core, handler)
        told = handler.resolve_ref_schema(schema)["properties"]
        for name in sorted(cls.WITHOUT_EFFECT):
            told[name] = {"anyOf": [{}, _NULL], "description": "without effect"}
        for name, values in cls.ONLY_AT.items():
            told[name] = {"anyOf": [{"enum": list(values)}, _NULL], "description": "other values are not served"}
            if not values:
                told[name]["anyOf"] = [_NULL]
        return schema


def _refusal(name: str, found: Any, values: Sequence[Any]) -> InitErrorDetails | None:
    if found is None or any(found == value and isinstance(found, type(value)) for value in values):
        return None
    expected = f"one of: null, {', '.join(map(_json, values))}" if values else "null"
    told = PydanticCustomError(
        "not_served",
        "found {found}, and that is not served; leave the field out, or send {expected}",
        {"found": _shown(found), "expected": expected},
    )
    return InitErrorDetails(type=told, loc=(name,), input=found)


def _shown(found: Any) -> str:
    try:
        shown = _json(found)
    except TypeError:  # it is nested too deeply to be written again
        return "a nested value"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
