"""Parsing JSON of unknown origin, so strictly that every value can be written as JSON again."""

from __future__ import annotations

import json
from typing import Any

import orjson

_LEAST, _MOST = -(1 << 63), (1 << 64) - 1


def parse(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is no JSON by RFC 8259 (NaN and Infinity are not allowed); holds half of a surrogate pair,
            a whole number of more than 64 bits or a number too large for a float; or is nested deeper than 1,024
            levels.
    """
    orjson.loads(data)
    return json.loads(data, parse_int=_whole)


def parse_any_size(data: bytes | str) -> Any:
    """As `parse`, but whole numbers of more than 64 bits become floats.

    Raises:
        ValueError: as `parse`.
    """
    return orjson.loads(data)


def is_deeper(value: Any, most: int) -> bool:
    """Whether a value is nested in more than so many levels, counted without recursion."""
    level = [value]
    for _ in range(most):
        level = [
            child for v in level if isinstance(v, dict | list) for child in (v.values() if isinstance(v, dict) else v)
        ]
    return bool(level)


def _whole(digits: str) -> int:
    if len(digits) > 20 or not _LEAST <= (number := int(digits)) <= _MOST:
        raise ValueError(f"the whole number {digits[:24]}... has more than 64 bits")
    return number
