"""Health, readiness, metrics, the resident base, and the store's garbage."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from serving.api.auth import Authenticator
from serving.api.changes import AuditedChanges
from serving.api.problems import responses
from serving.service import Service
from serving.telemetry import scrape
from serving.telemetry.scrape import TargetGroup


class Status(BaseModel):
    status: str


class BaseInfo(BaseModel):
    name: str
    fingerprint: str
    bytes: int = Field(description="size of the resident weights")
    replica: str
    trouble: str | None = Field(
        description="why no further delta can be loaded: the base's file was written to; null: all is well"
    )


class ReplicaInfo(BaseModel):
    name: str
    revision: int = Field(description="the latest revision of the store that the replica has seen")
    metrics: str | None = Field(description="host and port of the replica's own metrics")


class Verification(BaseModel):
    """Whether the base is bit for bit the checkpoint, in memory and in its file."""

    tensors: int = Field(description="how many were compared")
    differing: list[str] = Field(description="names of resident tensors that differ; empty when all is well")
    differing_in_file: list[str] = Field(
        description="names of tensors that differ in the base's file: if there are any, no further delta is loaded"
    )


class Collected(BaseModel):
    """What a collection of garbage freed, and what it left because uploads hold it."""

    deltas: int = Field(description="deltas that were freed, and uploads that never completed")
    bytes: int = Field(description="of these")
    held_deltas: int = Field(description="deltas that no task has, and that uploads hold")
    held_bytes: int = Field(description="of these")
    held_until: int | None = Field(
        description="unix seconds; from then on they can be freed if no upload goes on; null: nothing is held"
    )


def router(service: Service, authenticator: Authenticator, changes: AuditedChanges) -> APIRouter:
    """Routes of operations. None needs a task."""
    routes = APIRouter(tags=["operations"], responses=responses(503))

    @routes.get("/healthz")
    async def healthz() -> Status:
        """Whether this replica can answer at all."""
        service.check()
        return Status(status="ok")

    @routes.get("/readyz")
    async def readyz() -> Status:
        """Whether the replica takes requests; 503 while it starts or stops."""
        service.admission.check_open()
        service.check()
        return Status(status="ready")

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus text of the one replica that got this request, named in the label `replica`."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/metrics/targets")
    async def targets() -> list[TargetGroup]:
        """Every replica's own metrics port, as Prometheus' HTTP service discovery reads it."""
        return scrape.targets(await asyncio.to_thread(service.store.replicas.addresses))

    @routes.get("/v1/replicas", responses=responses(401))
    async def replicas(request: Request) -> list[ReplicaInfo]:
        """The replicas that reported to the store recently."""
        authenticator.require(request, "predict")
        seen, addresses = await asyncio.to_thread(
            lambda: (service.store.replicas.revisions(), service.store.replicas.addresses())
        )
        return [ReplicaInfo(name=n, revision=seen[n], metrics=addresses.get(n)) for n in sorted(seen)]

    @routes.get("/v1/base", responses=responses(401))
    async def base(request: Request) -> BaseInfo:
        """The pretrained checkpoint that stays resident."""
        authenticator.require(request, "predict")
        resident = service.resident
        return BaseInfo(
            name=resident.checkpoint.folder.name,
            fingerprint=resident.fingerprint.digest,
            bytes=resident.nbytes,
            replica=service.replica,
            trouble=resident.checkpoint.files.trouble,
        )

    @routes.post("/v1/base/verify", responses=responses(401))
    async def verify(request: Request) -> Verification:
        """Revert to the base between two batches and compare the sha256 of all tensors, in memory and in the file."""
        authenticator.require(request, "admin")
        differing = await asyncio.wrap_future(service.engine.verify())
        in_file = await asyncio.to_thread(service.engine.verify_file)
        tensors = len(service.resident.fingerprint.tensors)
        return Verification(tensors=tensors, differing=differing, differing_in_file=in_file)

    @routes.post("/v1/gc", responses=responses(401))
    async def gc(request: Request) -> Collected:
        """Free the deltas that are no version of any task. What an upload holds is left until the upload is over."""
        change = changes.begin(request, "admin", "collect garbage")
        learned: dict[str, int] = {}

        def collect(who: str) -> Collected:
            found = service.store.garbage.collect()
            learned.update(deltas=found.deltas, bytes=found.bytes)
            return Collected(**asdict(found))

        return await change.audited(collect, learned)

    return routes
