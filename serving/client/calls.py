"""One function for each route of the server: it makes the request and knows how to read the answer. It sends nothing.

`Client` and `AsyncClient` have a method for each function, with the same arguments and docstring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import orjson
from pydantic import TypeAdapter

from serving.client.errors import ClientError, ReplyError, api_error
from serving.client.merge import Merge
from serving.client.results import (
    BaseInfo,
    Change,
    Collected,
    Generated,
    HistoryEntry,
    KeyInfo,
    NewKey,
    Prediction,
    Predictions,
    Replica,
    Revoked,
    RouteInfo,
    TaskDetail,
    TaskInfo,
    TextEnd,
    Upload,
    Verification,
)
from serving.security.signatures import Signature

T = TypeVar("T")
Input = str | Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, token ids, or the messages of a chat."""

_MIXED = 'batch;desc="mixed"'
_STAGE = re.compile(r"([\w-]+);dur=([\d.]+)")
_JSON, _BYTES = "application/json", "application/octet-stream"
_ALL_TO_LIVE: Mapping[str, int] = {"live": 1}


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request that is ready to be sent.

    Attributes:
        parse: turns a successful answer into the call's result.
        content: the request's body.
        repeatable: whether sending the call twice has the same effect and answer as sending it once.
        seconds: the deadline; None for the client's timeout.
        patience: seconds that the call asks the server to wait for replicas; they are added to the deadline.
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    content: bytes | None = None
    media_type: str = _JSON
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    seconds: float | None = None
    patience: float = 0.0

    def read(self, response: httpx.Response) -> T:
        """The call's result.

        Raises:
            ApiError: the answer is not a success.
            ReplyError: the answer does not have the form of the server's answers.
        """
        self.refused(response)
        try:
            return self.parse(response)
        except ValueError as error:
            found = f"{response.request.method} {response.request.url} answered {response.text[:100]!r}"
            raise ReplyError(f"{found}, which is no answer of a ken-serve of this version; check the URL") from error

    def refused(self, response: httpx.Response) -> None:
        """Raises `ApiError` if the answer is not a success."""
        if not response.is_success:
            raise api_error(response)


# Predictions


def predict(
    task: str | Merge,
    inputs: Input | Sequence[Input],
    *,
    parameters: Mapping[str, Any] | None = None,
    kind: str | None = None,
    digest: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
) -> Call[Prediction]:
    """Get a task's outputs for some inputs.

    Args:
        task: the task's name, or ``name@alias``; or a merge of tasks, which the server makes.
        inputs: one input or a list of inputs. An input is a text, or an object with the fields that the kind needs.
        parameters: the kind's parameters, e.g. ``{"top_k": 1}``.
        kind: the kind of question to ask; by default the task's own kind.
        digest: the version that answers: its digest, or 12 or more of the first digits.
        key: a name for the caller. If the task has a route, all calls with one key get the same version.
        timeout: seconds, in place of the client's. The server does not start work that it cannot finish in time.

    Raises:
        ApiError: the server refused the call.
        UnreachableError: no answer came in time.
    """
    named, model = (task.head, task.plain()) if isinstance(task, Merge) else (task, None)
    asked = {"inputs": inputs, "parameters": parameters, "kind": kind, "model": model}
    pinned = {"X-Ken-Delta": digest, "X-Ken-Key": key}
    return Call(
        "POST",
        _path("tasks", named, "predict"),
        _prediction,
        orjson.dumps(_given(asked)),
        headers=_given(pinned),
        seconds=timeout,
    )


def predict_many(
    tasks: str | Sequence[str],
    inputs: Input | Sequence[Input],
    *,
    parameters: Mapping[str, Any] | None = None,
    key: str | None = None,
    timeout: float | None = None,
) -> Call[Predictions]:
    """Put one question to many tasks at once. A task that fails does so alone, and raises nothing.

    Args:
        tasks: names, ``name@alias``, ``name@digest``, or patterns of names such as ``tox*`` and ``*``; a list of them,
            or one. A task that is named twice answers once.
        inputs: as in `predict`; every task gets all of them.
        parameters: as in `predict`; every task gets all of them, and one whose kind does not take them fails.
        key, timeout: as in `predict`.

    Raises:
        ApiError: the server refused the request as a whole, or no task could answer at the time.
        UnreachableError: no answer came in time.
    """
    asked = {"tasks": tasks, "inputs": inputs, "parameters": parameters}
    return Call(
        "POST",
        _path("predict"),
        _predictions,
        orjson.dumps(_given(asked)),
        headers=_given({"X-Ken-Key": key}),
        seconds=timeout,
    )


def generate(
    task: str | Merge,
    prompt: Prompt,
    *,
    parameters: Mapping[str, Any] | None = None,
    digest: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
) -> Call[Generated]:
    """Continue a prompt with a task that is a language model, and wait for all of the text.

    Args:
        task: as in `predict`.
        prompt: a text; token ids of the task's own tokenizer; or messages, of which the task's chat template makes the
            prompt, such as ``[{"role": "user", "content": "My parcel is late."}]``.
        parameters: how much is generated and how, e.g. ``{"max_tokens": 24, "temperature": 0.7, "stop": ["."]}``.
        digest, key, timeout: as in `predict`. The server gives up a text that is not complete in time.

    Raises:
        ApiError: the server refused the call.
        UnreachableError: no answer came in time.
    """
    return _generating(task, prompt, _generated, parameters, digest, key, timeout)


def stream(
    task: str | Merge,
    prompt: Prompt,
    *,
    parameters: Mapping[str, Any] | None = None,
    digest: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
) -> Call[TextEnd]:
    """Continue a prompt as `generate` does, and get the text piece by piece while it is generated.

    The result gives pieces when it is iterated over: ``for piece in client.stream("poems", "The rain in")``. If fewer
    than all pieces are read, a ``with`` block around the result gives up the rest.

    Raises:
        ApiError: the server refused the call, or failed in the middle of the text.
        UnreachableError: no answer came in time, or the connection was lost in the middle of the text.
    """
    return _generating(task, prompt, _reader(TextEnd), parameters, digest, key, timeout, stream=True)


# Tasks


def tasks() -> Call[list[TaskInfo]]:
    """All tasks, sorted by name."""
    return Call("GET", _path("tasks"), _reader(list[TaskInfo]))


def task(name: str) -> Call[TaskDetail]:
    """A task's versions, and the tiers in which the replica that answers holds them."""
    return Call("GET", _path("tasks", name), _reader(TaskDetail))


def history(name: str) -> Call[list[HistoryEntry]]:
    """The changes of a task and who made them, newest first."""
    return Call("GET", _path("tasks", name, "history"), _reader(list[HistoryEntry]))


def promote(
    task: str, digest: str, alias: str = "live", *, allow_other_labels: bool = False, wait: float | None = None
) -> Call[Change]:
    """Point an alias at one of the task's versions.

    Args:
        digest: the version: its digest, 12 or more of the first digits, or another alias that points at it.
        allow_other_labels: accept a version whose labels or kind differ from the live version's.
        wait: seconds to wait until every replica has seen the change; `Change.pending` names those that have not.
    """
    asked = {"digest": digest, "alias": alias, **_allowing(allow_other_labels)}
    return _pointing(_path("tasks", task, "promote"), asked, wait)


def rollback(task: str, alias: str = "live", *, wait: float | None = None) -> Call[Change]:
    """Point an alias back at the version it pointed at before. `wait` as in `promote`."""
    return replace(_pointing(_path("tasks", task, "rollback"), {"alias": alias}, wait), repeatable=False)


def delete_version(task: str, digest: str, *, force: bool = False, wait: float | None = None) -> Call[Change]:
    """Delete one version of a task.

    Args:
        digest: as in `promote`.
        force: delete the version even if aliases or the route point at it. Its aliases return to the version they
            pointed at before.
        wait: as in `promote`.
    """
    return _deleting(_path("tasks", task, "versions", digest), force, wait)


def delete_task(task: str, *, force: bool = False, wait: float | None = None) -> Call[Change]:
    """Delete a task and all its versions.

    Args:
        force: delete the versions even if aliases or the route point at them.
        wait: as in `promote`.
    """
    return _deleting(_path("tasks", task), force, wait)


# Routes


def route(task: str) -> Call[RouteInfo | None]:
    """How a task's predictions are split between versions and copied to a shadow; None if ``live`` answers all."""
    return Call("GET", _route(task), lambda response: _adapter(RouteInfo | None).validate_json(response.content))


def set_route(
    task: str,
    weights: Mapping[str, int] = _ALL_TO_LIVE,
    *,
    shadow: str | None = None,
    allow_other_labels: bool = False,
    wait: float | None = None,
) -> Call[Change]:
    """Split a task's predictions between its versions.

    Args:
        weights: e.g. ``{"live": 90, "canary": 10}``, by alias or digest. By default ``live`` answers everything.
        shadow: an alias or digest that gets a copy of each request after the request was answered. The shadow's
            answer is compared with the one that was given and counted (``ken_shadow_*``); no client gets it. None
            removes a shadow.
        allow_other_labels: as in `promote`.
        wait: as in `promote`.
    """
    asked = _given({"weights": dict(weights), "shadow": shadow}) | _allowing(allow_other_labels)
    return _changing(Call("PUT", _route(task), _reader(Change), orjson.dumps(asked)), wait)


def clear_route(task: str, *, wait: float | None = None) -> Call[Change]:
    """Let ``live`` answer all of a task's predictions again. `wait` as in `promote`."""
    return _changing(Call("DELETE", _route(task), _reader(Change)), wait)


def rollback_route(task: str, *, wait: float | None = None) -> Call[Change]:
    """Return to the previous route, which may be none. `wait` as in `promote`."""
    return _changing(Call("POST", f"{_route(task)}/rollback", _reader(Change), repeatable=False), wait)


# Uploads


def upload(digest: str) -> Call[Upload]:
    """The chunks of a delta that the server has."""
    return Call("GET", _path("uploads", digest), _reader(Upload))


def put_chunk(digest: str, index: int, data: bytes) -> Call[None]:
    """Send one chunk of a delta."""
    return Call("PUT", _path("uploads", digest, str(index)), lambda response: None, data, media_type=_BYTES)


def publish_digest(
    task: str,
    digest: str,
    alias: str = "live",
    *,
    signatures: Sequence[Signature] = (),
    allow_other_labels: bool = False,
    wait: float | None = None,
) -> Call[Change]:
    """Make an uploaded delta a version of a task, and point an alias at it.

    `allow_other_labels` and `wait` as in `promote`.
    """
    asked: dict[str, Any] = {"digest": digest, "alias": alias, **_allowing(allow_other_labels)}
    if signatures:
        asked["signatures"] = [signature.record() for signature in signatures]
    return _pointing(_path("tasks", task, "versions"), asked, wait)


# The server


def base() -> Call[BaseInfo]:
    """The base: the pretrained checkpoint that stays in memory."""
    return Call("GET", _path("base"), _reader(BaseInfo))


def verify() -> Call[Verification]:
    """Have one replica revert to the base between two batches and compare every tensor with the checkpoint."""
    return Call("POST", _path("base", "verify"), _reader(Verification))


def replicas() -> Call[list[Replica]]:
    """The replicas that reported to the store and did not end since."""
    return Call("GET", _path("replicas"), _reader(list[Replica]))


def adopt_store(*, wait: float | None = None) -> Call[Change]:
    """Have all replicas answer by what the store holds, after it was emptied, restored or exchanged.

    `wait` as in `promote`.
    """
    return _changing(Call("POST", _path("store", "adopt"), _reader(Change)), wait)


def collect_garbage() -> Call[Collected]:
    """Free the deltas that are no version of any task. What an upload holds is left until the upload is over."""
    return Call("POST", _path("store", "gc"), _reader(Collected), repeatable=False)


# Keys


def keys() -> Call[list[KeyInfo]]:
    """All API keys of the store."""
    return Call("GET", _path("keys"), _reader(list[KeyInfo]))


def create_key(
    name: str,
    scopes: Sequence[str],
    tasks: Sequence[str] = ("*",),
    *,
    expires_in: float | None = None,
    wait: float | None = None,
) -> Call[NewKey]:
    """Make an API key.

    Args:
        name: of the key's holder.
        scopes: some of predict, publish and admin; each includes those before it.
        tasks: patterns of the names of tasks that the key is valid for; ``*`` stands for any characters.
        expires_in: seconds until the key expires; None for a key that does not expire.
        wait: as in `promote`.
    """
    asked = {"name": name, "scopes": list(scopes), "tasks": list(tasks), "expires_in": expires_in}
    return _changing(Call("POST", _path("keys"), _reader(NewKey), orjson.dumps(_given(asked)), repeatable=False), wait)


def revoke_key(id: str, *, wait: float | None = None) -> Call[Revoked]:
    """Revoke an API key: it is not accepted any more. `wait` as in `promote`."""
    return _changing(Call("DELETE", _path("keys", id), _reader(Revoked), repeatable=False), wait)


def _generating(
    task: str | Merge,
    prompt: Prompt,
    parse: Callable[[httpx.Response], T],
    parameters: Mapping[str, Any] | None,
    digest: str | None,
    key: str | None,
    timeout: float | None,
    **beside: bool,
) -> Call[T]:
    are_messages = not isinstance(prompt, str) and any(isinstance(one, Mapping) for one in prompt)
    named, model = (task.head, task.plain()) if isinstance(task, Merge) else (task, None)
    put = {"messages": prompt} if are_messages else prompt
    return Call(
        "POST",
        _path("tasks", named, "generate"),
        parse,
        orjson.dumps(_given({"prompt": put, "parameters": parameters, "model": model, **beside})),
        headers=_given({"X-Ken-Delta": digest, "X-Ken-Key": key}),
        seconds=timeout,
    )


def _allowing(other_labels: bool) -> dict[str, bool]:
    """A field of a body. It is left out if it is false, since older servers do not know it."""
    return {"allow_other_labels": True} if other_labels else {}


def _changing(call: Call[T], wait: float | None) -> Call[T]:
    """A call that waits until replicas have seen its change, for routes that take `wait` in the query."""
    return call if wait is None else replace(call, query={**call.query, "wait": str(wait)}, patience=wait)


def _pointing(path: str, asked: Mapping[str, Any], wait: float | None) -> Call[Change]:
    """A change of an alias. Its routes take `wait` in the body."""
    return Call("POST", path, _reader(Change), orjson.dumps(_given({**asked, "wait": wait})), patience=wait or 0.0)


def _deleting(path: str, force: bool, wait: float | None) -> Call[Change]:
    query = {"force": "true"} if force else {}
    return _changing(Call("DELETE", path, _reader(Change), query=query, repeatable=False), wait)


def _route(task: str) -> str:
    return _path("tasks", task, "route")


def _path(*segments: str) -> str:
    # httpx would resolve "." and ".." as steps within the path, which makes another route of it
    odd = next((s for s in segments if s in ("", ".", "..")), None)
    if odd is not None:
        raise ClientError(f"{odd!r} is no name of a task, version or key")
    return "/v1/" + "/".join(quote(segment, safe="@") for segment in segments)


def _given(values: Mapping[str, T | None]) -> dict[str, T]:
    return {name: value for name, value in values.items() if value is not None}


def _reader(kind: type[T]) -> Callable[[httpx.Response], T]:
    parser: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]
    return lambda response: parser.validate_json(response.content)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _prediction(response: httpx.Response) -> Prediction:
    return Prediction.model_validate({**orjson.loads(response.content), **_in_headers(response)})


def _generated(response: httpx.Response) -> Generated:
    return Generated.model_validate({**orjson.loads(response.content), **_in_headers(response)})


def _predictions(response: httpx.Response) -> Predictions:
    return Predictions.model_validate({**orjson.loads(response.content), **_in_headers(response)})


def _in_headers(response: httpx.Response) -> dict[str, Any]:
    """What the headers of an answer say about the prediction."""
    stages = _STAGE.findall(response.headers.get("server-timing", ""))
    return {
        "timing": {name: float(milliseconds) / 1000 for name, milliseconds in stages},
        "mixed": _MIXED in response.headers.get("server-timing", ""),
        "request_id": response.headers.get("x-request-id"),
    }
