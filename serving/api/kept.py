"""What tasks' deltas keep of the base, layer by layer, and how far they keep the same."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from math import prod
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from ken_core.manifest import Manifest
from ken_core.viz.names import place, short_names
from ken_core.viz.overlap import Overlap
from serving.api.auth import Authenticator, permit
from serving.api.problems import responses
from serving.api.tasks import TaskName
from serving.errors import InvalidInputError, StoreError
from serving.pipelines import kinds_for
from serving.routing.kinds import own_kind
from serving.service import Service

Unit = Literal["positions", "rank"]
MOST_TASKS = 32
_VERSION = Query(min_length=1, description="an alias, or a digest or its first digits; by default live")


class KeptOfTensor(BaseModel):
    """What a delta keeps of one tensor of the base."""

    layer: int | None = Field(description="null: the tensor belongs to no numbered layer")
    module: str = Field(description="the tensor's name without its layer, shortened")
    unit: Unit = Field(description="what `kept` and `of` count")
    kept: int = Field(description="elements that are changed; or the rank of the shift")
    of: int = Field(description="elements of the tensor; or the highest rank that it can have")
    share: float
    bytes: int = Field(description="that it takes in the delta's file")


class Kept(BaseModel):
    """What a version of a task keeps of the base, and what can be asked of it."""

    task: str
    digest: str
    method: str = Field(description="that selected what is kept")
    kind: str = Field(description="the kind that the task answers by itself")
    kinds: list[str] = Field(description="every kind that a request may ask of the task, its own first")
    labels: list[str] | None
    bytes: int | None = Field(description="of the delta's file; null: the store does not answer")
    unit: Unit = Field(description="`rank`: matrices are shifted by products of thin ones, so there are no positions")
    layers: list[KeptOfTensor] = Field(description="every tensor of the base, in its order")


class OverlapInfo(BaseModel):
    """How far the live versions of tasks keep the same positions."""

    tasks: list[str] = Field(description="those that are compared, in the order of the rows and columns")
    shared: list[list[float | None]] = Field(
        description="the Jaccard index of each two: positions that both keep, of those that either keeps"
    )
    by_chance: list[list[float | None]] = Field(
        description="the same, if each kept as many elements of every tensor at random positions"
    )
    left_out: dict[str, str] = Field(description="why the other tasks are not compared")


def router(service: Service, authenticator: Authenticator) -> APIRouter:
    """Routes of what deltas keep."""
    routes = APIRouter(tags=["tasks"], responses=responses(401))

    async def manifest_of(digest: str) -> Manifest:
        found = await asyncio.to_thread(service.cache.files.manifest, digest)
        if found is None:
            raise StoreError(f"the store does not tell what delta {digest} holds, and it is not on this replica's disk")
        return found

    @routes.get("/v1/tasks/{task}/kept")
    async def kept(task: TaskName, request: Request, version: Annotated[str | None, _VERSION] = None) -> Kept:
        """What a version keeps of the base, tensor by tensor, and which kinds of questions it answers."""
        who = authenticator.require(request, "predict", task)
        digest = service.table.resolve(task, version or "live", sees=who.sees)
        manifest = await manifest_of(digest)
        return Kept(
            task=task,
            digest=digest,
            method=manifest.method,
            kind=own_kind(manifest.kind, manifest.embedding is not None),
            kinds=kinds_for(manifest),
            labels=manifest.labels or None,
            bytes=await asyncio.to_thread(_size, service, digest),
            unit="rank" if manifest.lowrank else "positions",
            layers=list(kept_by_tensor(manifest, service.overlaps.shapes)),
        )

    @routes.get("/v1/overlap", responses=responses(404, 429))
    async def overlap(
        request: Request,
        tasks: Annotated[str, Query(description=f"2 to {MOST_TASKS} names, with commas between them")] = "",
    ) -> OverlapInfo:
        """How far the live versions of tasks keep the same positions, beside what chance would give."""
        who = authenticator.require(request, "predict")
        names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
        if not 2 <= len(names) <= MOST_TASKS:
            raise InvalidInputError(f"found {len(names)} different names, expected 2 to {MOST_TASKS}", at="tasks")
        for name in names:
            permit(who, "predict", name)
        digests = {name: service.table.resolve(name, "live", sees=who.sees) for name in names}
        manifests = {name: await manifest_of(digest) for name, digest in digests.items()}
        left_out = {name: why for name, found in manifests.items() if (why := why_not_compared(found))}
        compared = [name for name in names if name not in left_out]
        found = await service.overlaps.between(list(dict.fromkeys(digests[name] for name in compared)))

        def rows(by_chance: bool) -> list[list[float | None]]:
            return [[_share(found, digests[a], digests[b], by_chance) for b in compared] for a in compared]

        return OverlapInfo(tasks=compared, shared=rows(False), by_chance=rows(True), left_out=left_out)

    return routes


def why_not_compared(manifest: Manifest) -> str | None:
    """Why a delta's positions cannot be compared with those of others; None where they can."""
    if manifest.sparse and not manifest.lowrank:
        return None
    return f"its delta keeps no positions ({manifest.method})"


def kept_by_tensor(manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[KeptOfTensor]:
    """What a delta keeps of every tensor of its base. Pure."""
    short = short_names(shapes)
    for name, shape in shapes.items():
        where, elements = place(name), prod(shape)
        unit: Unit = "positions"
        kept, of, nbytes = 0, elements, 0
        if sparse := manifest.sparse.get(name):
            kept, nbytes = sparse.stored, sparse.mask.bytes + sparse.values.bytes
        elif factors := manifest.lowrank.get(name):
            unit, kept, of, nbytes = "rank", factors.rank, min(shape), factors.a.bytes + factors.b.bytes
        elif whole := manifest.dense.get(name):
            kept, nbytes = elements, whole.data.bytes
        yield KeptOfTensor(
            layer=where.layer, module=short[where.kind], unit=unit, kept=kept, of=of, share=kept / of if of else 0.0,
            bytes=nbytes,
        )  # fmt: skip


def _share(found: Mapping[tuple[str, str], Overlap], first: str, second: str, by_chance: bool) -> float | None:
    """Of one delta with itself, all is shared, whatever chance says."""
    if first == second:
        return 1.0
    one = found[first, second] if (first, second) in found else found[second, first]
    share = one.jaccard_by_chance if by_chance else one.jaccard
    return None if math.isnan(share) else share


def _size(service: Service, digest: str) -> int | None:
    try:
        return service.store.deltas.size(digest)
    except StoreError:
        return None
