"""The table of all settings, from `serving.config.Settings`."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

from pydantic.fields import FieldInfo

from docs.generators.tables import table
from serving.config import MIB, Settings


def settings() -> str:
    """One row for each setting: its variable, its type, its default and its meaning."""
    types = Settings.model_json_schema()["properties"]
    rows = (
        (f"`KEN_{name.upper()}`", type_of(types[name]), default_of(field), field.description or "")
        for name, field in Settings.model_fields.items()
    )
    return table(("variable", "type", "default", "meaning"), rows)


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema in words: ``integer, 1 to 65535``, or the values that can be chosen."""
    if "anyOf" in schema:
        return type_of(next(one for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return "JSON list"
    return f"{schema['type']}{_limits(schema)}"


def _limits(schema: dict[str, Any]) -> str:
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    if lowest is not None and highest is not None:
        return f", {_number(lowest)} to {_number(highest)}"
    if lowest is not None:
        return f", at least {_number(lowest)}"
    if "exclusiveMinimum" in schema:
        return f", more than {_number(schema['exclusiveMinimum'])}"
    return ""


def default_of(field: FieldInfo) -> str:
    """The default as it would be written into the environment."""
    if field.is_required():
        return "none: required"
    if field.default_factory is not None:
        return "`~/.local/share/ken`"
    if field.default is None:
        return "not set"
    return f"`{_written(field.default)}`"


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return json.dumps(list(value))
    if isinstance(value, bool | PurePath):
        return str(value).lower()
    return _number(value) if isinstance(value, int | float) else str(value)


def _number(value: float) -> str:
    if isinstance(value, int) and value >= MIB and value % MIB == 0:
        return f"{value} ({value // MIB:,} MiB)"
    return f"{value:g}" if isinstance(value, float) else str(value)
