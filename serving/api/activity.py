"""What the server did lately, by task, version and replica."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from serving.api.auth import Authenticator
from serving.api.problems import responses
from serving.monitoring.activity import Answers, ReplicaActivity
from serving.replica.observing import Observation
from serving.security.keys import Principal
from serving.service import Service


class Rates(BaseModel):
    """Requests that were answered. Null: nothing can be said yet."""

    requests_per_second: float | None = None
    failed_per_second: float | None = Field(None, description="answers with a status of 500 or more")
    refused_per_second: float | None = Field(None, description="answers with a status of 400 to 499")
    failed_share: float | None = Field(None, description="of the answers; null: there were none")
    tokens_per_second: float | None = Field(None, description="tokens generated")
    p50_seconds: float | None = None
    p95_seconds: float | None = None
    p99_seconds: float | None = None


class TaskRates(Rates):
    """One task. `other`, `unknown` and `@merge` are labels of the metrics."""

    task: str
    held: dict[str, str] = Field(description="the tier that holds its live version, by replica, as far as is known")
    hit_rate: float | None = Field(
        description="share of its requests to the replica that answers, since that started, whose delta was on the "
        "device; null: there were none"
    )


class VersionRates(Rates):
    """One version of a task."""

    task: str
    version: str = Field(description="the first 12 digits of its digest")


class ShadowOutcomes(BaseModel):
    """Inputs copied for a shadow, by what became of them, since the replicas started."""

    task: str
    version: str
    agreed: int
    differed: int
    failed: int
    skipped: int


class ReplicaRates(BaseModel):
    """One replica. Null: it is not known."""

    replica: str
    ready: bool | None
    in_flight: int | None
    requests_per_second: float | None
    waiting_inputs: int | None
    mixed_share: float | None = Field(description="share of the forward passes that mixed tasks; null: there were none")
    swaps_per_second: float | None
    bytes_by_tier: dict[str, int] = Field(description="bytes of deltas by tier; `base`: the resident base")
    up_seconds: float | None
    held_tasks: int | None
    trouble: list[str] = Field(description="what is wrong, in words")


class ActivityInfo(BaseModel):
    """What the server did lately, as far as the key may see it."""

    at: float = Field(description="unix seconds")
    seconds: float = Field(description="that the rates are about; 0: nothing can be said yet, ask again in a second")
    tasks: list[TaskRates] = Field(description="those asked for most first")
    versions: list[VersionRates]
    shadows: list[ShadowOutcomes]
    replicas: list[ReplicaRates] | None = Field(description="null: the key is not for every task")
    unread: dict[str, str] = Field(description="why the metrics of a replica are missing, by replica")


def router(service: Service, authenticator: Authenticator) -> APIRouter:
    """The route of what the server did lately."""
    routes = APIRouter(prefix="/v1/activity", tags=["operations"], responses=responses(401))

    @routes.get("")
    async def activity(request: Request) -> ActivityInfo:
        """What the server did in the last ten seconds or so, from the metrics of all replicas.

        The replica that answers compares with what it read when it was asked before. So rates are null at the first
        time. Tasks beyond `KEN_METRIC_TASKS` are counted together as `other`.
        """
        who = authenticator.require(request, "predict")
        found = await asyncio.to_thread(service.observer.observe)
        seen = found.activity
        every = who.sees_every_task
        return ActivityInfo(
            at=found.at,
            seconds=seen.seconds,
            tasks=list(_tasks(service, found, who)),
            versions=[
                VersionRates(task=one.task, version=one.version, **_rates(one.answers))
                for one in seen.versions
                if who.sees(one.task)
            ],
            shadows=[ShadowOutcomes(**vars(one)) for one in seen.shadows if who.sees(one.task)],
            replicas=[_replica(one) for one in seen.replicas] if every else None,
            unread=dict(found.unread) if every else {},
        )

    return routes


def _tasks(service: Service, found: Observation, who: Principal) -> Iterator[TaskRates]:
    table, tiers = service.table.current.tasks, service.engine.tiers
    for one in found.activity.tasks:
        known = table.get(one.task)
        if not (who.sees(one.task) if known else who.sees_every_task):
            continue
        held = {replica: "packed" for replica, tasks in found.held.items() if one.task in tasks}
        here = tiers.describe(known.versions) if known else None
        live = known.aliases.get("live") if known else None
        if here is not None and live is not None:
            held[service.replica] = here.tiers[live]
        yield TaskRates(task=one.task, held=held, hit_rate=here.hit_rate if here else None, **_rates(one.answers))


def _rates(answers: Answers | None) -> dict[str, float | None]:
    if answers is None:
        return {}
    asked = answers.requests_per_second
    return {**vars(answers), "failed_share": answers.failed_per_second / asked if asked else None}


def _replica(one: ReplicaActivity) -> ReplicaRates:
    rate = None if one.answers is None else one.answers.requests_per_second
    told = {name: getattr(one, name) for name in ReplicaRates.model_fields if name != "requests_per_second"}
    return ReplicaRates(**told, requests_per_second=rate)
