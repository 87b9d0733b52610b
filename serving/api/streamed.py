"""How the OpenAPI document describes answers that may be a stream of events."""

from __future__ import annotations

from typing import Any

from serving.api.event_stream import MEDIA_TYPE


def streamed(description: str) -> dict[int | str, Any]:
    """The ``responses`` of a route that answers with server-sent events where the request asks for a stream."""
    fields = {"data": {"type": "string"}, "event": {"type": "string"}}
    schema = {"type": "object", "properties": fields, "required": ["data"], "description": description}
    return {200: {"content": {MEDIA_TYPE: {"schema": schema}}}}
