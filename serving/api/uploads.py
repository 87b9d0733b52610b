"""Uploads of deltas over HTTP, in chunks. A chunk may be repeated, so an upload can go on after a lost connection."""

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

Index = Annotated[
    int, Path(ge=0, description=f"the chunk's position; all chunks but the last have {CHUNK_BYTES} bytes")
]


class Chunk(BaseModel):
    """A chunk that the store has taken."""

    digest: str
    index: int
    bytes: int


class UploadInfo(BaseModel):
    """How much of an upload has arrived."""

    digest: str
    received: list[int] = Field(description="positions of the chunks that the store holds, in order")
    bytes: int = Field(description="size of these chunks together")
    complete: bool = Field(description="whether the store holds the delta itself, ready to become a version")


def router(service: Service, authenticator: Authenticator, changes: AuditedChanges) -> APIRouter:
    """Routes of uploads. No prediction uses an upload before it becomes a version of a task."""
    routes = APIRouter(prefix=PREFIX, tags=["tasks"], responses=responses(401))
    possession = Possession(service)

    @routes.put(
        "/{digest}/{index}",
        responses=responses(507),
        openapi_extra={"requestBody": {"required": True, "content": _CHUNK}},
    )
    async def put(digest: Digest, index: Index, request: Request) -> Chunk:
        """Upload one chunk of the delta file whose sha256 is `digest`. May be repeated."""
        who = authenticator.require(request, "publish")
        data = await request.body()
        if not data:
            raise BadRequestError("the chunk is empty; expected the bytes of the file at this position")
        await asyncio.to_thread(possession.put_chunk, who, digest, index, data)
        if index == 0:
            audit("upload", who.name, "done", request_id=request_id(request.scope), digest=digest)
        return Chunk(digest=digest, index=index, bytes=len(data))

    @routes.get("/{digest}")
    async def show(digest: Digest, request: Request) -> UploadInfo:
        """Which chunks have arrived. A key of some tasks sees those that it sent itself."""
        who = authenticator.require(request, "publish")
        found = await asyncio.to_thread(possession.uploaded, who, digest)
        return UploadInfo(digest=digest, received=list(found.received), bytes=found.bytes, complete=found.complete)

    return routes
