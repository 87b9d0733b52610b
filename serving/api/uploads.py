"""Deltas over HTTP, in chunks: repeatable, and resumable after a cut connection."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from serving.api.auth import Authenticator
from serving.api.changes import AuditedChanges
from serving.api.failures import request_id
from serving.api.possession import Possession
from serving.api.problems import responses
from serving.api.tasks import Digest
from serving.errors import BadRequestError
from serving.service import Service
from serving.store import CHUNK_BYTES
from serving.telemetry.audit import audit

PREFIX = "/v1/uploads"
_CHUNK = {"application/octet-stream": {"schema": {"type": "string", "format": "binary", "maxLength": CHUNK_BYTES}}}

Index = Annotated[int, Path(ge=0, description=f"of the chunk; all but the last have {CHUNK_BYTES} bytes")]


class Chunk(BaseModel):
    """A chunk the store has taken."""

    digest: str
    index: int
    bytes: int


class UploadInfo(BaseModel):
    """How far an upload has come."""

    digest: str
    received: list[int] = Field(description="chunks the store holds, in order")
    bytes: int
    complete: bool = Field(description="whether the store holds it as a delta, ready to become a version")


def router(service: Service, authenticator: Authenticator, changes: AuditedChanges) -> APIRouter:
    """Routes of uploads. What was uploaded is seen by nobody until it becomes a version of a task."""
    routes = APIRouter(prefix=PREFIX, tags=["tasks"], responses=responses(401))
    possession = Possession(service)

    @routes.put("/{digest}/{index}", openapi_extra={"requestBody": {"required": True, "content": _CHUNK}})
    async def put(digest: Digest, index: Index, request: Request) -> Chunk:
        """Upload one chunk of a delta file whose sha256 is `digest`. May be repeated."""
        who = authenticator.require(request, "publish")
        data = await request.body()
        if not data:
            raise BadRequestError("the chunk is empty; expected the bytes of the file from there on")
        await asyncio.to_thread(possession.put_chunk, who, digest, index, data)
        if index == 0:
            audit("upload", who.name, "done", request_id=request_id(request.scope), digest=digest)
        return Chunk(digest=digest, index=index, bytes=len(data))

    @routes.get("/{digest}")
    async def show(digest: Digest, request: Request) -> UploadInfo:
        """Which chunks are there already; for a key of some tasks, those that it sent itself."""
        who = authenticator.require(request, "publish")
        found = await asyncio.to_thread(possession.uploaded, who, digest)
        return UploadInfo(digest=digest, received=list(found.received), bytes=found.bytes, complete=found.complete)

    return routes
