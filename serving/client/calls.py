"""The server's routes, a function each: what to send, and how to read the answer. No network is touched here.

`Client` and `AsyncClient` make a method of each function, with its arguments and documentation.
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
from serving.client.results import (
    BaseInfo,
    Change,
    HistoryEntry,
    KeyInfo,
    NewKey,
    Prediction,
    Replica,
    Revoked,
    RouteInfo,
    TaskDetail,
    TaskInfo,
    Upload,
    Verification,
)
from serving.security.signatures import Signature

T = TypeVar("T")
Input = str | Mapping[str, Any]

_STAGE = re.compile(r"([\w-]+);dur=([\d.]+)")
_JSON, _BYTES = "application/json", "application/octet-stream"
_ALL_TO_LIVE: Mapping[str, int] = {"live": 1}


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request that was not sent yet.

    Attributes:
        parse: makes the result of a successful answer.
        content: the body.
        repeatable: doing it twice has the effect and the answer of doing it once.
        seconds: its deadline, None for the client's own.
        patience: seconds that the server is asked to wait for something; they come on top of the deadline.
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
            ApiError: the server did not do it.
            ReplyError: the answer has a form that is not the server's.
        """
        if not response.is_success:
            raise api_error(response)
        try:
            return self.parse(response)
        except ValueError as error:
            found = f"{response.request.method} {response.request.url} answered {response.text[:100]!r}"
            raise ReplyError(f"{found}, which no ken-serve of this version does") from error


# Predictions


def predict(
    task: str,
    inputs: Input | Sequence[Input],
    *,
    parameters: Mapping[str, Any] | None = None,
    kind: str | None = None,
    digest: str | None = None,
    key: str | None = None,
    timeout: float | None = None,
) -> Call[Prediction]:
    """Ask a task.

    Args:
        task: its name, or ``name@alias``.
        inputs: one input or a list of them: texts, or objects of the fields the kind asks for.
        parameters: of the kind, e.g. ``{"top_k": 1}``.
        kind: what to ask of the task; by default what it answers by itself.
        digest: pins one of the task's versions; 12 or more of the digits it begins with are enough.
        key: where the task has a route, calls of one key are answered by one of its targets.
        timeout: seconds, in place of the client's; the server does not begin what cannot be done in time.

    Raises:
        ApiError: the server refused it.
        UnreachableError: no answer came in time.
    """
    asked = {"inputs": inputs, "parameters": parameters, "kind": kind}
    pinned = {"X-Ken-Delta": digest, "X-Ken-Key": key}
    return Call(
        "POST",
        _path("tasks", task, "predict"),
        _prediction,
        orjson.dumps(_given(asked)),
        headers=_given(pinned),
        seconds=timeout,
    )


# Tasks


def tasks() -> Call[list[TaskInfo]]:
    """All tasks, by name."""
    return Call("GET", _path("tasks"), _reader(list[TaskInfo]))


def task(name: str) -> Call[TaskDetail]:
    """One task's versions, and where the replica that answers has them."""
    return Call("GET", _path("tasks", name), _reader(TaskDetail))


def history(name: str) -> Call[list[HistoryEntry]]:
    """Who changed what of a task, newest first."""
    return Call("GET", _path("tasks", name, "history"), _reader(list[HistoryEntry]))


def promote(
    task: str, digest: str, alias: str = "live", *, allow_other_labels: bool = False, wait: float | None = None
) -> Call[Change]:
    """Point an alias at one of the task's versions.

    Args:
        digest: the version's, 12 or more of the digits it begins with, or another alias that points at it.
        allow_other_labels: also where it answers with other labels, or another kind, than the live version.
        wait: seconds to wait until every replica has seen the change; those that have not are in `Change.pending`.
    """
    asked = {"digest": digest, "alias": alias, **_allowing(allow_other_labels)}
    return _pointing(_path("tasks", task, "promote"), asked, wait)


def rollback(task: str, alias: str = "live", *, wait: float | None = None) -> Call[Change]:
    """Point an alias at what it pointed at before. `wait` as in `promote`."""
    return replace(_pointing(_path("tasks", task, "rollback"), {"alias": alias}, wait), repeatable=False)


def delete_version(task: str, digest: str, *, force: bool = False, wait: float | None = None) -> Call[Change]:
    """Forget one version of a task.

    Args:
        digest: as in `promote`.
        force: also where aliases or the route point at it; aliases fall back to what they pointed at before.
        wait: as in `promote`.
    """
    return _deleting(_path("tasks", task, "versions", digest), force, wait)


def delete_task(task: str, *, force: bool = False, wait: float | None = None) -> Call[Change]:
    """Forget a task and all its versions.

    Args:
        force: also where aliases or the route point at them.
        wait: as in `promote`.
    """
    return _deleting(_path("tasks", task), force, wait)


# Routes


def route(task: str) -> Call[RouteInfo | None]:
    """How a task's predictions are split and copied; None where ``live`` answers all."""
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
        weights: e.g. ``{"live": 90, "canary": 10}``, by alias or version; ``live`` answers all if it is left out.
        shadow: an alias or version that is asked the same once the answer was given. What it says is compared and
            counted (``ken_shadow_*``) and given to nobody. None: no shadow, also where there was one before.
        allow_other_labels: as in `promote`.
        wait: as in `promote`.
    """
    asked = _given({"weights": dict(weights), "shadow": shadow}) | _allowing(allow_other_labels)
    return _changing(Call("PUT", _route(task), _reader(Change), orjson.dumps(asked)), wait)


def clear_route(task: str, *, wait: float | None = None) -> Call[Change]:
    """Let ``live`` answer all of a task's predictions again. `wait` as in `promote`."""
    return _changing(Call("DELETE", _route(task), _reader(Change)), wait)


def rollback_route(task: str, *, wait: float | None = None) -> Call[Change]:
    """Return to the route before the present one, or to none. `wait` as in `promote`."""
    return _changing(Call("POST", f"{_route(task)}/rollback", _reader(Change), repeatable=False), wait)


# Uploads


def upload(digest: str) -> Call[Upload]:
    """Which chunks of a delta the server has."""
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
    """Make a delta that the server has a version of a task, and point an alias at it.

    `allow_other_labels` and `wait` as in `promote`.
    """
    asked: dict[str, Any] = {"digest": digest, "alias": alias, **_allowing(allow_other_labels)}
    if signatures:
        asked["signatures"] = [signature.record() for signature in signatures]
    return _pointing(_path("tasks", task, "versions"), asked, wait)


# The server


def base() -> Call[BaseInfo]:
    """The pretrained checkpoint that stays resident."""
    return Call("GET", _path("base"), _reader(BaseInfo))


def verify() -> Call[Verification]:
    """Revert one replica to the base between two batches, and compare every tensor with the checkpoint."""
    return Call("POST", _path("base", "verify"), _reader(Verification))


def replicas() -> Call[list[Replica]]:
    """The replicas that reported lately."""
    return Call("GET", _path("replicas"), _reader(list[Replica]))


# Keys


def keys() -> Call[list[KeyInfo]]:
    """All keys of the store."""
    return Call("GET", _path("keys"), _reader(list[KeyInfo]))


def create_key(
    name: str,
    scopes: Sequence[str],
    tasks: Sequence[str] = ("*",),
    *,
    expires_in: float | None = None,
    wait: float | None = None,
) -> Call[NewKey]:
    """Make a key.

    Args:
        name: whose it is.
        scopes: of predict, publish, admin; each includes those before it.
        tasks: patterns of the tasks it is for, ``*`` for any characters.
        expires_in: seconds from now, None for never.
        wait: as in `promote`.
    """
    asked = {"name": name, "scopes": list(scopes), "tasks": list(tasks), "expires_in": expires_in}
    return _changing(Call("POST", _path("keys"), _reader(NewKey), orjson.dumps(_given(asked)), repeatable=False), wait)


def revoke_key(id: str, *, wait: float | None = None) -> Call[Revoked]:
    """Make a key worthless. `wait` as in `promote`."""
    return _changing(Call("DELETE", _path("keys", id), _reader(Revoked), repeatable=False), wait)


def _allowing(other_labels: bool) -> dict[str, bool]:
    """Part of a body. Left out where it says nothing: a server from before does not know it."""
    return {"allow_other_labels": True} if other_labels else {}


def _changing(call: Call[T], wait: float | None) -> Call[T]:
    """A change that is waited for."""
    return call if wait is None else replace(call, query={**call.query, "wait": str(wait)}, patience=wait)


def _pointing(path: str, asked: Mapping[str, Any], wait: float | None) -> Call[Change]:
    """A change of an alias; these take `wait` in the body."""
    return Call("POST", path, _reader(Change), orjson.dumps(_given({**asked, "wait": wait})), patience=wait or 0.0)


def _deleting(path: str, force: bool, wait: float | None) -> Call[Change]:
    query = {"force": "true"} if force else {}
    return _changing(Call("DELETE", path, _reader(Change), query=query, repeatable=False), wait)


def _route(task: str) -> str:
    return _path("tasks", task, "route")


def _path(*segments: str) -> str:
    # httpx would take the last two for a step within the path, and so for another route
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
    stages = _STAGE.findall(response.headers.get("server-timing", ""))
    beside = {
        "timing": {name: float(milliseconds) / 1000 for name, milliseconds in stages},
        "request_id": response.headers.get("x-request-id"),
    }
    return Prediction.model_validate({**orjson.loads(response.content), **beside})
