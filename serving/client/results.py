"""The results of calls. Unknown fields, which a newer server may send, are ignored; a missing one is a `ReplyError`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.client.merge import Merge


class Result(BaseModel):
    """Base class of all results: frozen, compared by value.

    A model is built when it is first used, since a program uses few of them and pydantic takes a millisecond for each.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)


class Prediction(Result):
    """One output for each input, in the order of the inputs."""

    task: str
    digest: str = Field(description="of the delta that answered, or of the merge")
    merge: Merge | None = Field(
        None, validation_alias="model", description="the merge that answered, with its versions pinned"
    )
    kind: str = Field(description="the kind of question that was answered")
    outputs: list[Any]
    truncated: tuple[int, ...] = Field(description="positions of the inputs that were cut to the model's length")
    timing: dict[str, float] = Field(description="seconds in each of the server's stages: load, queue, swap, model")
    mixed: bool = Field(False, description="whether inputs ran in a batch that may hold rows of several tasks")
    request_id: str | None = Field(description="names the request in the server's log")


class TaskAnswer(Result):
    """One task's answer to a question put to many: one output an input, in order."""

    task: str = Field(description="as it was asked for")
    digest: str = Field(description="the delta that answered")
    kind: str = Field(description="the kind of question that was answered")
    outputs: list[Any]
    truncated: tuple[int, ...] = Field(description="positions of inputs that were cut to the model's length")


class TaskError(Result):
    """Why a task did not answer."""

    status: int = Field(description="the HTTP status that the task alone would have been answered with")
    title: str = Field(description="the kind of failure in a few words")
    detail: str = Field(description="what was found, what was expected, what to do")
    retry_after: float | None = Field(None, description="seconds; None where trying again later is of no use")


class TaskFailure(Result):
    """A task that did not answer a question put to many; the others may have."""

    task: str = Field(description="as it was asked for")
    error: TaskError


class Predictions(Result):
    """What came of a question put to many tasks: an answer or a failure a task."""

    results: tuple[TaskAnswer | TaskFailure, ...] = Field(description="in the order asked; those of a pattern by name")
    timing: dict[str, float] = Field(description="seconds: of each of the server's stages, the longest of any task")
    mixed: bool = Field(False, description="whether inputs ran in batches that may hold rows of several tasks")
    request_id: str | None = Field(description="names the request in the server's log")

    @property
    def answers(self) -> dict[str, TaskAnswer]:
        """By task, as it was asked for."""
        return {result.task: result for result in self.results if isinstance(result, TaskAnswer)}

    @property
    def failures(self) -> dict[str, TaskError]:
        """By task, as it was asked for; empty when all tasks answered."""
        return {result.task: result.error for result in self.results if isinstance(result, TaskFailure)}


class Candidate(Result):
    """A token that could have been chosen."""

    id: int
    text: str
    logprob: float


class GeneratedToken(Result):
    """A token that was chosen."""

    id: int
    text: str = Field(description="that the token stands for by itself; U+FFFD where that is no whole character")
    logprob: float = Field(description="before any sampling parameter")
    likeliest: tuple[Candidate, ...]


class Continuation(Result):
    """A text that continues the prompt."""

    text: str
    finish: Literal["stop", "length"] = Field(description="why it ended: an end or a stop, or no room for more")
    stop: str | int | None = Field(None, description="the text or the token that the call gave and that ended it")
    tokens: tuple[GeneratedToken, ...] | None = Field(None, description="if the call asked for logprobs")


class TextUsage(Result):
    """Tokens of a call that generated text."""

    prompt_tokens: int
    generated_tokens: int = Field(description="of all continuations together")


class Generated(Result):
    """Continuations of a prompt."""

    task: str
    digest: str = Field(description="of the delta that answered, or of the merge")
    merge: Merge | None = Field(
        None, validation_alias="model", description="the merge that answered, with its versions pinned"
    )
    choices: tuple[Continuation, ...]
    usage: TextUsage
    timing: dict[str, float] = Field(description="seconds in each of the server's stages")
    request_id: str | None = Field(None, description="names the request in the server's log")

    @property
    def text(self) -> str:
        """Of the first continuation."""
        return self.choices[0].text


class TextPiece(Result):
    """The next part of one continuation."""

    choice: int = Field(description="the number of the continuation")
    text: str
    finish: Literal["stop", "length"] | None = Field(description="why the continuation ends here; None: it goes on")
    stop: str | int | None = None
    tokens: tuple[GeneratedToken, ...] | None = Field(None, description="if the call asked for logprobs")


class TextEnd(Result):
    """What a stream says after its last piece."""

    task: str
    digest: str = Field(description="of the delta that answered, or of the merge")
    merge: Merge | None = Field(
        None, validation_alias="model", description="the merge that answered, with its versions pinned"
    )
    usage: TextUsage


class TaskInfo(Result):
    """A task's aliases and versions."""

    name: str
    revision: int = Field(description="the store's revision at the task's last change")
    aliases: dict[str, str] = Field(description="digest by alias")
    versions: tuple[str, ...] = Field(description="digests, oldest first")
    route: dict[str, int] | None = Field(None, description="weight by alias or digest; None: live answers everything")
    shadow: str | None = Field(None, description="alias or digest that gets copies of requests that name no version")


class TaskDetail(TaskInfo):
    """A task, and where the replica that answered holds its versions."""

    replica: str
    tiers: dict[str, str] = Field(description="the tier that holds each version now, by digest")
    hits: dict[str, int] = Field(description="requests since the replica started, by the tier their delta was in")
    hit_rate: float | None = Field(description="share of requests whose delta was on the device; None: no requests yet")
    unmixed: dict[str, str] = Field(
        default_factory=dict, description="why a version on the device never shares a forward pass, by digest"
    )


class RouteInfo(Result):
    """How a task's predictions are split between versions, and which version gets copies of them."""

    weights: dict[str, int] = Field(description="weight by alias or digest")
    shadow: str | None = Field(None, description="alias or digest that gets copies of requests, for comparison only")


class HistoryEntry(Result):
    """Who changed what, and when: an alias, a version, the route or, in the keys' own history, a key."""

    action: str
    alias: str = ""
    digest: str = Field("", description="what the alias points at since the change, or the version that was deleted")
    previous: str = Field("", description="the digest that the alias pointed at before the change")
    route: dict[str, int] | None = Field(None, description="the route since the change")
    previous_route: dict[str, int] | None = None
    shadow: str | None = Field(None, description="the shadow since the change, if the route was changed")
    previous_shadow: str | None = None
    other_labels: str | None = Field(
        None, description="how the labels, kind or form of answers changed, if the change was allowed to change them"
    )
    key: str | None = None
    who: str
    when: int = Field(description="Unix seconds")
    revision: int

    @property
    def of_route(self) -> bool:
        """Whether the route was changed, set or removed."""
        return self.action.endswith("route") or bool(self.route or self.previous_route)


class Spread(Result):
    """Which replicas answer by a change, if the call waited for them."""

    seen: tuple[str, ...] = Field((), description="replicas that answer by the change")
    pending: tuple[str, ...] = Field((), description="replicas not known to answer by it when `wait` ran out")
    silent: dict[str, float] = Field(
        default_factory=dict,
        description="those pending that are out of touch with the store, and for how many seconds",
    )


class Change(Spread):
    """A change that was made."""

    task: str | None = Field(None, description="None: the change is not of a task")
    revision: int = Field(description="the store's revision after the change")


class Revoked(Change):
    """The revocation of a key."""

    notice: str | None = Field(None, description="if the last key was revoked: what that means for access")


class Upload(Result):
    """The state of a delta's upload."""

    digest: str
    received: tuple[int, ...] = Field(description="indices of the chunks that arrived")
    bytes: int
    complete: bool = Field(description="whether the store holds the whole delta, so that nothing needs to be sent")


class KeyInfo(Result):
    """A key without its secret. Times are Unix seconds."""

    id: str
    name: str
    scopes: tuple[str, ...]
    tasks: tuple[str, ...] = Field(description="patterns of the names of tasks that the key is valid for")
    created: int
    expires: int | None = Field(None, description="None: the key does not expire")


class NewKey(KeyInfo, Spread):
    """A new key with its token, which the server does not show again."""

    token: str = Field(repr=False)
    revision: int = Field(description="the store's revision after the change; replicas that have seen it know the key")
    notice: str | None = Field(None, description="if this is the first key: what that means for access")


class Replica(Result):
    """A replica: one copy of the base with its engine."""

    name: str
    revision: int = Field(description="the newest revision of the store that the replica has seen")
    metrics: str | None = Field(None, description="host and port of the replica's own metrics")
    silent_seconds: float = Field(
        0.0, description="how long it has not reported, if long enough to matter: it may answer by an older revision"
    )
    ready: bool | None = Field(None, description="whether it takes requests; None: it does not say")
    in_flight: int | None = Field(None, description="requests accepted and not answered; None: it does not say")
    seen: int | None = Field(
        None, description="the epoch of the placement of tasks up to which it has loaded what is placed on it"
    )
    held_tasks: int | None = Field(None, description="tasks whose live version is on its device, at most 1000")


class Collected(Result):
    """What a collection of garbage freed, and what it left because uploads hold it."""

    deltas: int = Field(description="deltas that were freed, and uploads that never completed")
    bytes: int = Field(description="of these")
    held_deltas: int = Field(description="deltas that no task has, and that uploads hold")
    held_bytes: int = Field(description="of these")
    held_until: int | None = Field(
        description="Unix seconds; from then on they can be freed if no upload goes on; None: nothing is held"
    )


class BaseInfo(Result):
    """The base: the pretrained checkpoint that stays in memory."""

    name: str
    fingerprint: str
    bytes: int = Field(description="of the resident weights")
    replica: str
    trouble: str | None = Field(None, description="why the replica loads no further delta: the base's file was changed")


class Verification(Result):
    """Whether the base in memory is bit for bit equal to the checkpoint."""

    tensors: int
    differing: tuple[str, ...] = Field(description="names of the tensors that differ from the checkpoint")
    differing_in_file: tuple[str, ...] = Field(
        (), description="names of the tensors whose values in the base's file have changed"
    )
