"""What HAProxy answers by itself, in the form of the protocol that the path belongs to. Pure: values in, text out.

A replica gives its failures their form in `serving.api`. HAProxy answers where there is no replica, or none that
answers, and reads the same forms from these maps. A test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

RETRY_SECONDS = 5
"""Replicas and HAProxy are replaced in about this time."""

NATIVE_TYPE = "application/problem+json"


@dataclass(frozen=True)
class OwnAnswer:
    """A failure that HAProxy reports by itself.

    Attributes:
        retry_after: seconds until trying again may help; None where it does not help.
    """

    status: int
    title: str
    detail: str
    retry_after: int | None = None


OWN_ANSWERS = (
    OwnAnswer(408, "Request timeout", "the request did not arrive in time"),
    OwnAnswer(502, "Bad gateway", "the replica ended before it had answered"),
    OwnAnswer(503, "Unavailable", "no replica is ready; the server starts one", retry_after=RETRY_SECONDS),
    OwnAnswer(504, "Deadline exceeded", "the replica did not answer in time"),
)

Body = dict[str, object]


def _native(answer: OwnAnswer) -> Body:
    """RFC 9457 problem JSON, as `serving.api.problems`."""
    about = {"type": "about:blank", "title": answer.title, "status": answer.status}
    return {**about, "detail": answer.detail, "request_id": None}


def _openai(answer: OwnAnswer) -> Body:
    return {"error": {"message": answer.detail, "type": "server_error", "param": None, "code": None}}


def _hub(answer: OwnAnswer) -> Body:
    return {"error": answer.detail, "error_type": "Unhealthy" if answer.status == 503 else "Backend"}


def _cohere(answer: OwnAnswer) -> Body:
    return {"message": answer.detail}


def _kserve(answer: OwnAnswer) -> Body:
    return {"error": answer.detail}


FORMS: Mapping[str, Callable[[OwnAnswer], Body]] = MappingProxyType(
    {
        "/v1/models": _openai,
        "/v1/embeddings": _openai,
        "/v1/chat": _openai,
        "/v1/completions": _openai,
        "/models": _hub,
        "/embed": _hub,
        "/predict": _hub,
        "/rerank": _hub,
        "/info": _hub,
        "/v1/rerank": _cohere,
        "/v2/rerank": _cohere,
        "/v2": _kserve,
    }
)
"""The form of failures by the first parts of the path. All other paths have the native form."""


def maps() -> dict[str, str]:
    """The contents of HAProxy's map files by their names: from the beginning of a path to the body of an answer.

    Both the path and its beginning end with a slash, so that ``/v2`` begins as ``/v2/`` and ``/v2x`` does not. A target
    without a path, such as that of ``OPTIONS *``, counts as ``/``.
    """
    return {map_name(answer): _map(answer) for answer in OWN_ANSWERS}


def map_name(answer: OwnAnswer) -> str:
    """The name of an answer's map file."""
    return f"answers-{answer.status}.map"


def _map(answer: OwnAnswer) -> str:
    forms = {"/": _native, **{f"{parts}/": form for parts, form in FORMS.items()}}
    return "".join(f"{beginning} {_text(form(answer))}\n" for beginning, form in forms.items())


def _text(body: Body) -> str:
    return json.dumps(body, separators=(",", ":"))
