"""What happens in the server, as server-sent events."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

from fastapi import APIRouter, Request, Response
from starlette.types import Message, Receive, Scope, Send

from serving.api import event_stream
from serving.api.auth import Authenticator
from serving.api.following import Follower, Following
from serving.api.middleware import GoneError
from serving.api.problems import responses
from serving.api.streamed import streamed
from serving.errors import ServingError
from serving.replica.happenings import Happening, Happenings, changes_after
from serving.security.keys import Principal
from serving.service import Service

PAUSE_SECONDS = 15.0
"""After so long a comment is sent if nothing happened, and the key is checked again."""
_LOOK_SECONDS = 0.5
_SEND_SECONDS = 10.0
"""A client that reads nothing for so long is taken for gone."""
_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")

_DESCRIPTION = (
    "`event` is `change` (a task, a revision, and who did what), `swap` (a replica's weights changed from one task to "
    "another; null: the base), `replica` (one joined, is ready, is silent or gone) or `placement` (its epoch); `data` "
    "is JSON. Only changes have an `id`."
)

_LAST = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "the last id that the client had: changes after it come first",
    "schema": {"type": "string"},
}


def router(service: Service, authenticator: Authenticator) -> APIRouter:
    """The route of events."""
    routes = APIRouter(prefix="/v1/events", tags=["operations"], responses=responses(401, 429))
    following = Following(lambda: Happenings(service.store, lambda: _epoch(service)))

    @routes.get("", response_class=Response, responses=streamed(_DESCRIPTION), openapi_extra={"parameters": [_LAST]})
    async def events(request: Request) -> Response:
        """What happens from now on, until the client leaves or the replica stops.

        With `Last-Event-ID`, changes after that one come first, at most 100. A key sees changes of its own tasks;
        `swap`, `replica` and `placement` need a key of every task. A client that reads too slowly is disconnected, and
        goes on where it was.
        """
        authenticator.require(request, "predict")
        service.admission.check_open()
        return event_stream.SentByItself(_Stream(service, authenticator, following, request).send_all)

    return routes


def _epoch(service: Service) -> int | None:
    return None if service.placing.current is None else service.placing.current.epoch


class _Stream:
    """One client's stream."""

    def __init__(self, service: Service, authenticator: Authenticator, following: Following, request: Request) -> None:
        self._service = service
        self._authenticator = authenticator
        self._following = following
        self._request = request

    async def send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timely(message: Message) -> None:
            try:
                async with asyncio.timeout(_SEND_SECONDS):
                    await send(message)
            except TimeoutError:
                raise GoneError from None

        async with self._following.follow() as follower:
            made = Response(headers=event_stream.HEADERS, media_type=event_stream.MEDIA_TYPE)
            headers = [header for header in made.raw_headers if header[0] != b"content-length"]
            await timely({"type": "http.response.start", "status": 200, "headers": headers})
            heard = event_stream.while_heard(self._events(follower), receive, PAUSE_SECONDS, math.inf)
            async with aclosing(heard) as events:
                with suppress(ServingError):  # the key was revoked, or the store does not answer
                    async for event in events:
                        body = event_stream.QUIET if event is None else event
                        await timely({"type": "http.response.body", "body": body, "more_body": True})
        await timely({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, follower: Follower) -> AsyncIterator[bytes]:
        """Ends when the replica drains, the client was too slow, or its key is not valid any more."""
        yield event_stream.QUIET  # so that the client knows that it follows
        who, checked = self._authenticator.require(self._request, "predict"), time.monotonic()
        last = self._request.headers.get("last-event-id", "")
        missed = await asyncio.to_thread(changes_after, self._service.store, last) if _ID.fullmatch(last) else []
        for change in missed:
            if is_seen(change, who):
                yield _written(change)
        told = _place(missed[-1].id if missed else last)
        while not self._service.admission.draining and not follower.lost:
            if time.monotonic() - checked >= PAUSE_SECONDS:
                who, checked = self._authenticator.require(self._request, "predict"), time.monotonic()
            found = await follower.next(_LOOK_SECONDS)
            if found is not None and is_seen(found, who) and (found.id is None or _place(found.id) > told):
                yield _written(found)


def _written(found: Happening) -> bytes:
    return event_stream.event(dict(found.told), found.kind, found.id)


def _place(id: str | None) -> tuple[int, ...]:
    """An id of the store's stream as numbers that can be compared; of what is no id, a place before all of them."""
    return tuple(map(int, id.split("-"))) if id is not None and _ID.fullmatch(id) else ()


def is_seen(found: Happening, who: Principal) -> bool:
    """Whether a key sees what happened."""
    if found.kind != "change":
        return who.sees_every_task
    task = str(found.told["task"])
    return who.may("admin") if task.startswith("@") else who.sees(task)
