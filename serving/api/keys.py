"""Making, listing and revoking API keys over HTTP."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from serving.api.auth import Authenticator
from serving.api.bodies import body_of, read_body
from serving.api.changes import AuditedChanges, ChangeAnswer, SpreadAnswer, Wait
from serving.api.problems import responses
from serving.incoming import Incoming
from serving.security.exposure import FIRST_KEY, LAST_KEY
from serving.security.keys import Key, Scope, new_key, readable
from serving.service import Service

KeyId = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$")]


class KeyRequest(Incoming):
    """The key that a request makes."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "search team", "scopes": ["predict"], "tasks": ["trec*"]}]},
    )

    name: str = Field(min_length=1, max_length=128)
    scopes: list[Scope] = Field(min_length=1)
    tasks: list[str] = Field(
        ["*"], min_length=1, max_length=64, description="patterns of the tasks that the key is for"
    )
    expires_in: float | None = Field(None, gt=0, description="seconds until the key expires; by default it does not")


class KeyInfo(BaseModel):
    """A key without its secret."""

    id: str
    name: str
    scopes: list[Scope]
    tasks: list[str]
    created: int = Field(description="unix seconds")
    expires: int | None


class NewKey(SpreadAnswer, KeyInfo):
    token: str = Field(description="the key itself, which only this answer shows; the store keeps its hash")
    revision: int = Field(description="the store's revision from which on replicas know the key")
    notice: str | None = Field(None, description="what else changes: from the first key on, requests need a key")


class Revoked(ChangeAnswer):
    """A key that was revoked."""

    notice: str | None = Field(
        None, description="what else changes: without the last key, the server refuses every request"
    )


def router(service: Service, authenticator: Authenticator, changes: AuditedChanges) -> APIRouter:
    """Routes of keys. All need the scope admin."""
    routes = APIRouter(prefix="/v1/keys", tags=["keys"], responses=responses(401))

    @routes.get("")
    async def keys(request: Request) -> list[KeyInfo]:
        """All keys in the store."""
        authenticator.require(request, "admin")
        return [KeyInfo(**_shown(key)) for key in readable(service.table.current.keys)]

    @routes.post("", status_code=201, openapi_extra=body_of(KeyRequest))
    async def create(request: Request, wait: Wait = None) -> NewKey:
        """Make a key. Its token is in the answer and nowhere else."""
        change = changes.begin(request, "admin", "create key")
        body = await read_body(request, KeyRequest)
        expires = None if body.expires_in is None else int(time.time() + body.expires_in)
        key, token = new_key(body.name, body.scopes, body.tasks, expires)
        facts: dict[str, Any] = {"key": key.id, "name": key.name, "scopes": list(key.scopes), "tasks": list(key.tasks)}
        notice = None if await asyncio.to_thread(service.store.keys.locked) else FIRST_KEY
        changed = await change.make(partial(service.store.keys.put, key.id, key.record()), wait, **facts)
        return NewKey(**_shown(key), **changed.model_dump(exclude={"task"}), token=token, notice=notice)

    @routes.delete("/{key}")
    async def revoke(key: KeyId, request: Request, wait: Wait = None) -> Revoked:
        """Revoke a key. Each replica refuses it from when the replica has seen the change."""
        change = changes.begin(request, "admin", "revoke key")
        changed = await change.make(partial(service.store.keys.drop, key), wait, key=key)
        notice = None if await asyncio.to_thread(service.store.keys.all) else LAST_KEY
        return Revoked(**changed.model_dump(), notice=notice)

    return routes


def _shown(key: Key) -> dict[str, Any]:
    return key.model_dump(exclude={"hash"})
