"""The OpenAPI document: adds to FastAPI's own document what FastAPI cannot know of the routes.

The statuses, headers and keys of an operation mostly follow from what it does, and these rules are written down once,
here: a body may be malformed or not arrive, an operation that may answer 401 takes a key, and one that may answer 504
is a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI

from serving.api import replica_name, store_notice
from serving.api.auth import COOKIE, CSRF_HEADER
from serving.api.examples import ANSWERS
from serving.routing.versions import SHORTEST

DESCRIPTION = """\
Tasks are fine-tunes of one transformer. One copy of its weights answers all of them. The routes under `/v1/tasks` are
the server's own protocol; the others speak the protocols of OpenAI, Hugging Face, text-embeddings-inference, Cohere
(reranking) and KServe.
A failure has the form of the protocol that the path belongs to, and is RFC 9457 problem JSON under all other paths.
"""
TAGS = [
    {"name": "predict", "description": "Predictions in the server's own protocol"},
    {"name": "openai", "description": "OpenAI's protocol: a task is a model"},
    {"name": "huggingface", "description": "Hugging Face's inference protocol, as `InferenceClient` speaks it"},
    {"name": "text-embeddings-inference", "description": "Hugging Face's text-embeddings-inference"},
    {"name": "cohere", "description": "Cohere's protocol for reranking"},
    {"name": "Open Inference Protocol", "description": "KServe's protocol, version 2, with JSON tensors"},
    {"name": "tasks", "description": "Tasks, their versions, aliases and routes, and uploads of deltas"},
    {"name": "keys", "description": "API keys"},
    {"name": "session", "description": "Sessions of browsers, for the console"},
    {"name": "operations", "description": "Health, metrics, replicas and the resident base"},
]

Failing = Callable[..., dict[int | str, Any]]
"""Makes the ``responses`` of given statuses in the form of a protocol."""

_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer ken_...`"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "the same key"},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": f"of browsers, see `/v1/session`; a request that is no GET also needs `{CSRF_HEADER}`",
    },
}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_BEGINNING = {"type": "string", "pattern": f"^[0-9a-f]{{{SHORTEST},64}}$"}
_ID = {"type": "string", "pattern": r"^[\x21-\x7e]{1,128}$"}


def _taken(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


_ALWAYS_TAKEN = _taken(
    "X-Request-Id", "names the request in answers, logs and the audit log; the server makes one if it is missing", _ID
)
_STAYING = (
    _taken(
        "X-Ken-Key",
        "an end user; while a route splits the task's traffic, each end user gets the same version throughout",
        {"type": "string", "minLength": 1},
    ),
)
_CHOOSING = (
    _taken("X-Ken-Delta", "pins one of the task's versions, by its digest or the first digits of it", _BEGINNING),
    *_STAYING,
)
CHOOSING = {"parameters": list(_CHOOSING)}
"""``openapi_extra`` of a route that is no prediction but resolves a version too."""
_DEADLINE = _taken(
    "X-Request-Timeout-Ms",
    "milliseconds until the request gives up with 504; the server's own limit applies too",
    {"type": "integer", "minimum": 1, "maximum": 999_999_999},
)
_TASK = _taken("X-Ken-Task", "the task, where the body does not name it", {"type": "string", "minLength": 1})

_TIMED = {"Server-Timing": {"description": "milliseconds of each stage", "schema": {"type": "string"}}}
_ANSWERED = {
    "X-Ken-Delta": {"description": "digest of the delta that answered", "schema": _DIGEST},
    "X-Ken-Merge": {
        "description": "the merge that answered, as JSON with its versions pinned, if the request wants tasks merged",
        "schema": {"type": "string"},
    },
    **_TIMED,
}
_RETRY = {
    "Retry-After": {"description": "seconds until trying again may help", "schema": {"type": "integer", "minimum": 1}}
}
_GIVEN: dict[str, dict[str, Any]] = {
    "401": {"WWW-Authenticate": {"description": "the challenge of RFC 6750", "schema": {"type": "string"}}},
    "405": {"Allow": {"description": "methods that the path has", "schema": {"type": "string"}}},
    "415": {"Accept-Encoding": {"description": "encodings that the server reads", "schema": {"type": "string"}}},
    "429": _RETRY,
    "503": _RETRY,
}
_FASTAPIS = ("HTTPValidationError", "ValidationError")
"""FastAPI's schemas for malformed parameters. No failure of this server has such a form."""
_ECHOED = {
    "X-Request-Id": {"description": "of the request", "schema": _ID},
    **replica_name.DOCUMENTED,
    **store_notice.DOCUMENTED,
}


def install(app: FastAPI, failing_of: Callable[[str], Failing]) -> None:
    """Complete the application's document when it is first requested.

    Args:
        failing_of: describes failures under a path.
    """
    written = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = completed(written(), failing_of)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def completed(document: dict[str, Any], failing_of: Callable[[str], Failing]) -> dict[str, Any]:
    """The document with the statuses, headers and keys that follow from what each operation does."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = _SECURITY
    schemas = components["schemas"]
    for name in _FASTAPIS:
        schemas.pop(name, None)
    for name, example in ANSWERS.items():
        schemas[name]["examples"] = [example]
    for path, operation in _operations(document):
        _complete(path, operation, failing_of(path))
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def _complete(path: str, operation: dict[str, Any], failing: Failing) -> None:
    responses = operation["responses"]
    needs_key, predicts = "401" in responses, "504" in responses
    if needs_key and "security" not in operation:
        operation["security"] = [{name: []} for name in _SECURITY]
    operation["parameters"] = [*operation.get("parameters", ()), *_headers(path, operation, predicts)]
    responses.pop("422", None)
    added = {str(status): made for status, made in failing(*_statuses(path, operation, needs_key)).items()}
    operation["responses"] = responses = dict(sorted({**added, **responses}.items()))
    for status, response in responses.items():
        answered = {} if not predicts or status != "200" else _TIMED if _asks_many(operation) else _ANSWERED
        response["headers"] = {**_ECHOED, **answered, **_GIVEN.get(status, {})}


def _headers(path: str, operation: dict[str, Any], predicts: bool) -> Iterator[dict[str, Any]]:
    yield _ALWAYS_TAKEN
    if predicts:
        many = _asks_many(operation)
        yield from (*(_STAYING if many else _CHOOSING), _DEADLINE)
        if not many and "{" not in path and "model" not in _body(operation).get("required", ()):
            yield _TASK


def _body(operation: dict[str, Any]) -> dict[str, Any]:
    content = operation["requestBody"]["content"]
    schema: dict[str, Any] = next(iter(content.values()))["schema"]
    return schema


def _asks_many(operation: dict[str, Any]) -> bool:
    """Whether a prediction asks many tasks: then it names no task by a header, and no one delta answers."""
    return "tasks" in _body(operation).get("required", ())


def _statuses(path: str, operation: dict[str, Any], needs_key: bool) -> Iterator[int]:
    yield from (405, 500)
    if needs_key:
        yield from (401, 403, 503)
    if "requestBody" in operation:
        yield from (400, 408, 413, 415, 422)
    if "{" in path:
        yield 404
    if any(parameter["in"] != "header" for parameter in operation["parameters"]):
        yield 422
