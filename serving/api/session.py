"""Sessions of browsers: a key is sent once, and a cookie stands for it afterwards."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ken_core.version import __version__
from serving.api.auth import COOKIE, CSRF_HEADER, Authenticator
from serving.api.bodies import body_of, read_body
from serving.api.problems import responses
from serving.errors import ForbiddenError, UnauthorizedError
from serving.incoming import Incoming
from serving.security.keys import Principal, Scope
from serving.security.sessions import SECONDS, Session
from serving.service import Service


class SessionRequest(Incoming):
    """The key that a session shall stand for."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"key": "ken_4f0c9a6be1d2_..."}]})

    key: str = Field(min_length=1, max_length=1024)


class SessionKey(BaseModel):
    """The key of whoever asks."""

    id: str
    name: str
    scopes: list[Scope]
    tasks: list[str] = Field(description="patterns of the tasks that the key is for")
    expires: int | None = Field(description="unix seconds; null: it does not")


class SessionInfo(BaseModel):
    """Who asks, as the server sees it, and what a page needs for the requests that follow."""

    needs_key: bool = Field(description="whether requests need a key")
    key: SessionKey | None = Field(description="null: there is none, or none is needed")
    csrf: str | None = Field(description="what requests with the cookie that are no GET send in X-Ken-Csrf")
    expires: int | None = Field(description="unix seconds at which the session ends; null: there is none")
    version: str
    base: str | None = Field(description="the base's name; null: a key is needed, and there is none")
    replica: str | None = Field(description="the replica that answers; null likewise")


_CSRF = {
    "name": CSRF_HEADER,
    "in": "header",
    "required": False,
    "description": "the session's `csrf`, as every request with the cookie that is no GET has it",
    "schema": {"type": "string"},
}


def router(service: Service, authenticator: Authenticator) -> APIRouter:
    """Routes of sessions."""
    routes = APIRouter(prefix="/v1/session", tags=["session"], responses=responses(403, 503))

    attributes: dict[str, Any] = {"secure": service.settings.tls, "httponly": True, "samesite": "strict"}

    def told(who: Principal | None, session: Session | None) -> SessionInfo:
        return SessionInfo(
            needs_key=authenticator.needs_key(),
            key=None if who is None else _key(who),
            csrf=None if session is None else session.csrf,
            expires=None if session is None else session.expires,
            version=__version__,
            base=service.resident.checkpoint.folder.name if who else None,
            replica=service.replica if who else None,
        )

    def give(response: Response, session: Session) -> None:
        response.set_cookie(COOKIE, session.token, max_age=SECONDS, **attributes)

    @routes.get("")
    async def show(request: Request, response: Response) -> SessionInfo:
        """Who asks, and whether requests need a key. A session past its half is renewed."""
        try:
            who = authenticator.principal(request)
        except UnauthorizedError:
            return told(None, None)
        session = authenticator.session(request) if authenticator.needs_key() else None
        if session is not None and session.is_past_half(time.time()):
            who, session = authenticator.begin_session(session.api_key, session.id)
            give(response, session)
        return told(who, session)

    @routes.post("", responses=responses(401), openapi_extra={**body_of(SessionRequest), "security": []})
    async def begin(request: Request, response: Response) -> SessionInfo:
        """Begin a session: the answer sets a cookie that stands for the key for an hour, and only browsers read it."""
        _refuse_other_pages(request)
        body = await read_body(request, SessionRequest)
        if not authenticator.needs_key():
            return told(authenticator.principal(request), None)
        who, session = authenticator.begin_session(body.key.strip())
        give(response, session)
        return told(who, session)

    @routes.delete("", status_code=204, openapi_extra={"parameters": [_CSRF]})
    async def end(request: Request) -> Response:
        """End the session: the browser forgets the cookie."""
        with suppress(UnauthorizedError):  # there is no session any more
            authenticator.principal(request)
        gone = Response(status_code=204)
        gone.delete_cookie(COOKIE, **attributes)
        return gone

    return routes


def _key(who: Principal) -> SessionKey | None:
    if who.key_id is None:
        return None
    return SessionKey(
        id=who.key_id,
        name=who.name.partition("/")[0],
        scopes=list(who.scopes),
        tasks=list(who.tasks),
        expires=who.expires,
    )


def _refuse_other_pages(request: Request) -> None:
    """A page of another site could begin a session with a key of its own, so that what its visitors do is done in its
    name. Browsers say where a request comes from; other clients say nothing."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = site in ("same-origin", "none") if site else origin is None or urlsplit(origin).netloc == request.url.netloc
    if not own:
        raise ForbiddenError("a page of another site sent this request; a session begins on the server's own page")
