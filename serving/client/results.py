"""What calls return. Fields a newer server adds are left out; one that is missing is a `ReplyError`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    """Base of all results: frozen, compared by value."""

    model_config = ConfigDict(frozen=True)


class Prediction(Result):
    """One output an input, in order."""

    task: str
    digest: str = Field(description="the delta that answered")
    kind: str = Field(description="the kind of question that was answered")
    outputs: list[Any]
    truncated: tuple[int, ...] = Field(description="positions of inputs that were cut to the model's length")
    timing: dict[str, float] = Field(description="seconds in the server's stages: load, queue, swap, model")
    request_id: str | None = Field(description="names the request in the server's log")


class TaskInfo(Result):
    """A task's aliases and versions."""

    name: str
    revision: int = Field(description="the store's revision at the task's last change")
    aliases: dict[str, str] = Field(description="alias to digest")
    versions: tuple[str, ...] = Field(description="digests, oldest first")
    route: dict[str, int] | None = Field(None, description="alias or digest to weight; None: all goes to live")
    shadow: str | None = Field(None, description="alias or digest that gets a copy of what the route decides about")


class TaskDetail(TaskInfo):
    """A task, and how the one replica that answered holds it."""

    replica: str
    tiers: dict[str, str] = Field(description="where each version is at present, by digest")
    hits: dict[str, int] = Field(description="requests by the tier their delta was found in, since the replica began")
    hit_rate: float | None = Field(description="share of requests whose delta was on the device; None: no requests yet")


class RouteInfo(Result):
    """How a task's predictions are split, and which version gets a copy of them."""

    weights: dict[str, int] = Field(description="alias or digest to weight")
    shadow: str | None = Field(None, description="alias or digest that is asked the same, only to compare")


class HistoryEntry(Result):
    """Who changed what, and when: an alias, a version, the route, or, among the keys' own changes, a key."""

    action: str
    alias: str = ""
    digest: str = Field("", description="what the alias points at from then on, or the version that is gone")
    previous: str = Field("", description="the digest that the alias pointed at before")
    route: dict[str, int] | None = Field(None, description="the route from then on")
    previous_route: dict[str, int] | None = None
    shadow: str | None = Field(None, description="where the route was changed: the alias or digest that gets copies")
    previous_shadow: str | None = None
    other_labels: str | None = Field(
        None, description="how answers came to differ in labels, kind or form, where that was allowed"
    )
    key: str | None = None
    who: str
    when: int = Field(description="Unix seconds")
    revision: int

    @property
    def of_route(self) -> bool:
        """Whether it is the route that was changed, if only to none."""
        return self.action.endswith("route") or bool(self.route or self.previous_route)


class Change(Result):
    """A change that was made."""

    task: str | None = Field(None, description="None: it is no task's")
    revision: int = Field(description="the store's revision after the change")
    pending: tuple[str, ...] = Field((), description="replicas that had not seen the change when `wait` ran out")


class Revoked(Change):
    """A key that is valid no more."""

    notice: str | None = Field(None, description="what else changes, where it was the last key: nobody gets in")


class Upload(Result):
    """How far a delta's upload is."""

    digest: str
    received: tuple[int, ...] = Field(description="numbers of the chunks that arrived")
    bytes: int
    complete: bool = Field(description="the store holds the whole delta; nothing needs to be sent")


class KeyInfo(Result):
    """A key, without what proves it. Times are Unix seconds."""

    id: str
    name: str
    scopes: tuple[str, ...]
    tasks: tuple[str, ...] = Field(description="patterns of the tasks it is for")
    created: int
    expires: int | None = Field(None, description="None: never")


class NewKey(KeyInfo):
    """A key just made, with the token that proves it: the server does not tell it again."""

    token: str = Field(repr=False)
    revision: int = Field(description="the store's revision from which on replicas know the key")
    pending: tuple[str, ...] = Field((), description="replicas that did not know it when `wait` ran out")
    notice: str | None = Field(None, description="what else changes, where it is the first key: requests need one")


class Replica(Result):
    """One copy of the base and its engine."""

    name: str
    revision: int = Field(description="the newest revision of the store that it has seen")
    metrics: str | None = Field(None, description="host and port of its own metrics")


class BaseInfo(Result):
    """The pretrained checkpoint that stays resident."""

    name: str
    fingerprint: str
    bytes: int = Field(description="of the resident weights")
    replica: str
    trouble: str | None = Field(None, description="why it loads no further delta: the base's file was written to")


class Verification(Result):
    """Whether the reverted base is bit for bit the checkpoint."""

    tensors: int
    differing: tuple[str, ...] = Field(description="names of tensors that are not; empty when all is well")
    differing_in_file: tuple[str, ...] = Field(
        (), description="names of those whose values in the base's file are others by now"
    )
