"""Tasks over HTTP: showing them, and changing which version answers."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from serving.api.auth import Authenticator
from serving.api.bodies import body_of, read_body
from serving.api.changes import AllowOtherLabels, AuditedChanges, ChangeAnswer, Force, Seconds, Wait
from serving.api.possession import Possession
from serving.api.problems import responses
from serving.incoming import Incoming
from serving.routing.routes import check_route
from serving.routing.versions import SHORTEST, version_of, with_whole_digests
from serving.security.signatures import MOST_SIGNATURES, Signature
from serving.service import Service
from serving.store import Task

TaskName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$", description="a task's name")]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="a delta's sha256")]
VersionName = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$",
        description=f"a version: its digest, the first {SHORTEST} or more digits of it, or an alias that points at it",
    ),
]


class TaskInfo(BaseModel):
    """A task, as this replica knows it."""

    name: str
    revision: int = Field(description="the store's revision after the task's last change")
    aliases: dict[str, str] = Field(description="digest by alias")
    versions: list[str] = Field(description="digests, oldest first")
    route: dict[str, int] | None = Field(
        None, description="weight by alias or digest; null: live answers every request"
    )
    shadow: str | None = Field(
        None, description="alias or digest that gets a copy of the requests that the route splits"
    )


class TaskDetail(TaskInfo):
    """A task, and where this replica holds its deltas."""

    replica: str
    tiers: dict[str, str] = Field(description="the tier that holds each version at present, by digest")
    hits: dict[str, int] = Field(description="requests since this replica started, by the tier that held their delta")
    hit_rate: float | None = Field(description="share of requests whose delta was on the device; null: no requests yet")
    unmixed: dict[str, str] = Field(
        description="why a version on the device never shares a forward pass with other tasks, by digest"
    )


class PromoteRequest(Incoming):
    """A version of a task, and the alias that shall point at it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"digest": "0" * 64, "alias": "canary"}]})

    digest: str = Field(
        description=f"a delta's sha256; to promote also the first {SHORTEST} or more digits of it, or an alias"
    )
    alias: str = "live"
    allow_other_labels: AllowOtherLabels = False
    wait: Seconds | None = Field(None, description="seconds to wait until every replica has seen the change")


class PublishRequest(PromoteRequest):
    """A delta that was uploaded, and its signatures."""

    signatures: list[Signature] = Field(
        [],
        max_length=MOST_SIGNATURES,
        description="signatures of the delta; if the server has trusted keys, one of these must have signed it",
    )


class RollbackRequest(Incoming):
    """The alias to point back."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"alias": "live", "wait": 10}]})

    alias: str = "live"
    wait: Seconds | None = Field(None, description="seconds to wait until every replica has seen the change")


class RouteInfo(Incoming):
    """How a task's requests are split over its versions, and which version gets copies of them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"weights": {"live": 90, "canary": 10}, "shadow": "next"}]}
    )

    weights: dict[str, int] = Field(
        {"live": 1}, description="weight by alias or digest; a share is a weight divided by the sum of all"
    )
    shadow: str | None = Field(
        None,
        description="alias or digest that gets copies of the requests, only to compare; no client gets its answers",
    )


class RouteRequest(RouteInfo):
    """How a task's requests shall be split, and which version shall get copies of them."""

    allow_other_labels: AllowOtherLabels = False


class HistoryEntry(BaseModel):
    """One entry of a task's history."""

    action: str
    alias: str
    digest: str
    previous: str
    route: dict[str, int] | None = Field(
        None, description="the new weights by alias or digest, if the route was changed"
    )
    previous_route: dict[str, int] | None = None
    shadow: str | None = Field(None, description="the alias or digest that gets copies, if the route was changed")
    previous_shadow: str | None = None
    other_labels: str | None = Field(
        None, description="how answers changed in labels, kind or form, if that was allowed"
    )
    who: str
    when: int = Field(description="unix seconds")
    revision: int


def router(service: Service, authenticator: Authenticator, changes: AuditedChanges) -> APIRouter:
    """Routes that show and change tasks."""
    routes = APIRouter(prefix="/v1/tasks", tags=["tasks"], responses=responses(401))
    store, possession, refused = service.store, Possession(service), responses(409)

    @routes.get("")
    async def tasks(request: Request) -> list[TaskInfo]:
        """All tasks that the key may see."""
        principal = authenticator.require(request, "predict")
        found = sorted(service.table.current.tasks.items())
        return [TaskInfo(**_facts(task)) for name, task in found if principal.may("predict", name)]

    @routes.get("/{task}")
    async def show(task: TaskName, request: Request) -> TaskDetail:
        """One task's versions, and where this replica holds them."""
        who = authenticator.require(request, "predict", task)
        found = service.table.find(task, who.sees)
        held = service.engine.tiers.describe(found.versions)
        return TaskDetail(**_facts(found), replica=service.replica, **asdict(held))

    @routes.get("/{task}/history")
    async def history(task: TaskName, request: Request) -> list[HistoryEntry]:
        """Who changed what and when, newest first."""
        who = authenticator.require(request, "predict", task)
        entries = await asyncio.to_thread(store.history.of, task)
        if not entries:
            service.table.find(task, who.sees)
        return [HistoryEntry(**entry) for entry in entries]

    @routes.post("/{task}/versions", responses=responses(409, 507), openapi_extra=body_of(PublishRequest))
    async def publish(task: TaskName, request: Request) -> ChangeAnswer:
        """Make an uploaded delta a version of the task and point an alias at it, if the delta is fit to serve."""
        change = changes.begin(request, "publish", "publish", task)
        body = await read_body(request, PublishRequest)

        def work(who: str) -> int:
            possession.take(change.principal, body.digest, body.signatures)
            return store.tasks.publish_digest(
                task, body.digest, body.alias, who, body.signatures, allow_other_labels=body.allow_other_labels
            )

        return await change.make(
            work, body.wait, digest=body.digest, alias=body.alias, allow_other_labels=body.allow_other_labels
        )

    @routes.post("/{task}/promote", responses=refused, openapi_extra=body_of(PromoteRequest))
    async def promote(task: TaskName, request: Request) -> ChangeAnswer:
        """Point an alias at one of the task's versions."""
        change = changes.begin(request, "publish", "promote", task)
        body = await read_body(request, PromoteRequest)

        learned = {"digest": body.digest}

        def work(who: str) -> int:
            learned["digest"] = version_of(store.tasks.known(task), body.digest)
            return store.tasks.promote(
                task, learned["digest"], body.alias, who, allow_other_labels=body.allow_other_labels
            )

        return await change.make(work, body.wait, learned, alias=body.alias, allow_other_labels=body.allow_other_labels)

    @routes.post("/{task}/rollback", responses=refused, openapi_extra=body_of(RollbackRequest))
    async def rollback(task: TaskName, request: Request) -> ChangeAnswer:
        """Point an alias at the version that it pointed at before."""
        change = changes.begin(request, "publish", "rollback", task)
        body = await read_body(request, RollbackRequest)
        return await change.make(partial(store.tasks.rollback, task, body.alias), body.wait, alias=body.alias)

    @routes.delete("/{task}/versions/{version}", responses=refused)
    async def delete_version(
        task: TaskName, version: VersionName, request: Request, force: Force = False, wait: Wait = None
    ) -> ChangeAnswer:
        """Delete a version. Refused while an alias or the route points at it."""
        change = changes.begin(request, "publish", "delete version", task)
        learned = {"digest": version}

        def work(who: str) -> int:
            learned["digest"] = version_of(store.tasks.known(task), version)
            return store.tasks.delete_version(task, learned["digest"], who, force)

        return await change.make(work, wait, learned, force=force)

    @routes.delete("/{task}", responses=refused)
    async def delete(task: TaskName, request: Request, force: Force = False, wait: Wait = None) -> ChangeAnswer:
        """Delete a task and all its versions. Refused while an alias points at one of them."""
        change = changes.begin(request, "admin", "delete", task)
        return await change.make(partial(store.tasks.delete, task, force=force), wait, force=force)

    @routes.get("/{task}/route")
    async def route(task: TaskName, request: Request) -> RouteInfo | None:
        """How the task's requests are split; null if all go to live."""
        who = authenticator.require(request, "predict", task)
        found = service.table.find(task, who.sees).route
        return RouteInfo(weights=dict(found.weights), shadow=found.shadow) if found else None

    @routes.put("/{task}/route", responses=refused, openapi_extra=body_of(RouteRequest))
    async def set_route(task: TaskName, request: Request, wait: Wait = None) -> ChangeAnswer:
        """Split the task's requests over its versions by weight, and send copies of them to one version, the shadow."""
        change = changes.begin(request, "publish", "route", task)
        body = await read_body(request, RouteRequest)
        allowed = body.allow_other_labels
        wanted = check_route(body.model_dump(exclude_unset=True, exclude={"allow_other_labels"}))
        learned = wanted.plain()

        def work(who: str) -> int:
            whole = with_whole_digests(store.tasks.known(task), wanted)
            learned.update(whole.plain())
            return store.tasks.set_route(task, whole, who, allow_other_labels=allowed)

        return await change.make(work, wait, learned, allow_other_labels=allowed)

    @routes.delete("/{task}/route")
    async def clear_route(task: TaskName, request: Request, wait: Wait = None) -> ChangeAnswer:
        """Send all the task's requests to live, and no copies."""
        change = changes.begin(request, "publish", "clear route", task)
        return await change.make(partial(store.tasks.set_route, task, None), wait)

    @routes.post("/{task}/route/rollback", responses=refused)
    async def rollback_route(task: TaskName, request: Request, wait: Wait = None) -> ChangeAnswer:
        """Split and copy the task's requests as before the last change of the route."""
        change = changes.begin(request, "publish", "rollback route", task)
        return await change.make(partial(store.tasks.rollback_route, task), wait)

    return routes


def _facts(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "revision": task.revision,
        "aliases": task.aliases,
        "versions": list(task.versions),
        "route": dict(task.route.weights) if task.route else None,
        "shadow": task.route.shadow if task.route else None,
    }
