"""Reads a JSON body into a model. Each way in which a body can be wrong has its own refusal."""

from __future__ import annotations

import codecs
from email.message import Message
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel

from serving.errors import BadRequestError, UnsupportedMediaError
from serving.pipelines.base import check

M = TypeVar("M", bound=BaseModel)

_JSON = "application/json"
_UTF8 = ("utf-8", "utf8", "us-ascii", "ascii")
_COMPRESSED = "{}, but has no Content-Encoding; name the encoding there, or send uncompressed JSON in UTF-8"
_STARTS = (
    (b"\x1f\x8b", _COMPRESSED.format("gzip")),
    (b"\x28\xb5\x2f\xfd", _COMPRESSED.format("zstd")),
    (codecs.BOM_UTF16_LE, "UTF-16 or UTF-32; expected JSON in UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16; expected JSON in UTF-8"),
)
"""First bytes of bodies that are not JSON in UTF-8, and what such a body is."""


async def read_body(request: Request, model: type[M]) -> M:
    """Parse and check a body.

    Raises:
        BadRequestError: the body is empty, not UTF-8, or no JSON.
        UnsupportedMediaError: its Content-Type names another character set than UTF-8.
        InvalidInputError: the JSON does not fit the model; the message names the place and the reason.
    """
    return check(model, await read_json(request))


async def read_json(request: Request) -> Any:
    """Parse a body without a model; raises as `read_body`. A byte order mark of UTF-8 is skipped (RFC 8259)."""
    _refuse_other_charset(request)
    raw = (await request.body()).removeprefix(codecs.BOM_UTF8)
    if not raw.strip():
        raise BadRequestError('the body is empty; expected JSON such as {"inputs": "some text"}')
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(_not_utf8(raw) or f"the body is not JSON: {error}") from None


def _refuse_other_charset(request: Request) -> None:
    """JSON is UTF-8 (RFC 8259). ASCII is a subset of UTF-8."""
    said = Message()
    said["Content-Type"] = request.headers.get("content-type", _JSON)
    charset = said.get_content_charset(_UTF8[0])
    if charset not in _UTF8:
        raise UnsupportedMediaError(f"Content-Type says that the body is in {charset[:40]!r}; send JSON in UTF-8")


def _not_utf8(raw: bytes) -> str | None:
    """How a body that is not JSON differs from text in UTF-8; None where it is text in UTF-8."""
    likely = next((name for start, name in _STARTS if raw.startswith(start)), None)
    if likely:
        return f"the body looks like {likely}"
    if b"\0" in raw[:4]:
        return "the body looks like UTF-16 or UTF-32; expected JSON in UTF-8"
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"the body is not UTF-8 at byte {error.start}; expected JSON in UTF-8"
    return None


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The part of the OpenAPI document about the body of a route that calls `read_body`."""
    content = {_JSON: {"schema": inlined(model.model_json_schema())}}
    return {"requestBody": {"required": True, "content": content}}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references: each is replaced by the definition that it names."""
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            name = part.get("$ref", "").removeprefix("#/$defs/")
            return resolve(definitions[name]) if name else {k: resolve(v) for k, v in part.items()}
        return [resolve(item) for item in part] if isinstance(part, list) else part

    return {k: resolve(v) for k, v in schema.items()}
