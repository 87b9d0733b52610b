"""Health, readiness, metrics, the resident base, and the store's garbage."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from serving.api.auth import Authenticator
from serving.api.changes import AuditedChanges, ChangeAnswer, Wait
from serving.api.problems import responses
from serving.replica.placing import Placing
from serving.service import Service
from serving.store import Report
from serving.store.placements import Load
from serving.telemetry import scrape
from serving.telemetry.scrape import TargetGroup


class Status(BaseModel):
    status: str


class StoreState(BaseModel):
    """What a replica knows of the store. None of it keeps a replica from answering."""

    reachable: bool
    silent_seconds: float = Field(
        description="how long the store has not answered, once that is long enough for others to notice; else 0"
    )
    other_history: bool = Field(
        description="the store was emptied, restored or exchanged; the replica answers by what it knew before"
    )
    trouble: str | None = Field(description="what is wrong and what to do; null: all is well")


class PlacementState(BaseModel):
    """What a replica knows of the placement of tasks. None of it keeps a replica from answering."""

    epoch: int | None = Field(description="of the placement that the replica follows; null: of none")
    seen: int = Field(description="the epoch up to which everything placed on the replica is loaded; 0: of none")
    enforced: bool = Field(description="whether requests go by the placement")
    trouble: str | None = Field(description="why they do not; null: they do")


class Readiness(Status):
    store: StoreState
    placement: PlacementState


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
    silent_seconds: float = Field(
        description="how long it has not reported, if that is 15 s or more: it may answer by an older revision; else 0"
    )
    ready: bool | None = Field(description="whether it takes requests; null: it does not say")
    in_flight: int | None = Field(description="requests accepted and not answered; null: it does not say")
    seen: int | None = Field(
        description="the epoch of the placement up to which everything placed on it is loaded; 0: of none; null: it "
        "does not say"
    )
    held_tasks: int | None = Field(
        description="tasks whose live version is on its device, at most 1000; null: it does not say"
    )


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


def _replica(report: Report, load: Load | None) -> ReplicaInfo:
    return ReplicaInfo(
        name=report.replica,
        revision=report.revision,
        metrics=report.address or None,
        silent_seconds=0.0 if report.in_touch else round(report.age, 1),
        ready=None if load is None else load.ready,
        in_flight=None if load is None else load.in_flight,
        seen=None if load is None else load.seen,
        held_tasks=None if load is None else len(load.held),
    )


def _placement(placing: Placing) -> PlacementState:
    return PlacementState(
        epoch=None if placing.current is None else placing.current.epoch,
        seen=placing.seen,
        enforced=placing.enforced,
        trouble=placing.not_enforced,
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
    async def readyz() -> Readiness:
        """Whether the replica takes requests; 503 while it starts or stops."""
        service.admission.check_open()
        service.check()
        watch = service.watch
        return Readiness(
            status="ready",
            store=StoreState(
                reachable=watch.store_up,
                silent_seconds=watch.silent_seconds,
                other_history=watch.other_history,
                trouble=watch.trouble,
            ),
            placement=_placement(service.placing),
        )

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus text of the one replica that got this request, named in the label `replica`."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/metrics/targets")
    async def targets() -> list[TargetGroup]:
        """Every replica's own metrics port, as Prometheus' HTTP service discovery reads it."""
        reports = await asyncio.to_thread(service.store.replicas.reports)
        return scrape.targets({name: report.address for name, report in reports.items()})

    @routes.get("/v1/replicas", responses=responses(401))
    async def replicas(request: Request) -> list[ReplicaInfo]:
        """The replicas that reported to the store and did not end since."""
        authenticator.require(request, "predict")
        reports = await asyncio.to_thread(service.store.replicas.reports)
        loads = await asyncio.to_thread(service.store.placements.loads)
        return [_replica(report, loads.get(report.replica)) for report in reports.values()]

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

    @routes.post("/v1/store/adopt", responses=responses(401, 409))
    async def adopt(request: Request, wait: Wait = None) -> ChangeAnswer:
        """Have all replicas answer by what the store holds, after it was emptied, restored or exchanged.

        Until then each replica keeps the tasks and keys that it knew.
        """
        change = changes.begin(request, "admin", "adopt store")
        return await change.make(partial(service.store.adoptions.add, keeps=service.watch.keeps), wait)

    @routes.post("/v1/store/gc", responses=responses(401))
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
