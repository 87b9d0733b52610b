"""What a command can ask of a server or of a store. Each command is written once for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from serving.client import Change, Collected, HistoryEntry, KeyInfo, NewKey, Revoked, TaskInfo


@dataclass(frozen=True)
class Listing:
    """All tasks.

    Attributes:
        revision: the store's revision.
        sizes: bytes of each delta by its digest; without those whose size is unknown.
    """

    revision: int
    tasks: Sequence[TaskInfo]
    sizes: Mapping[str, int]


class Backend(Protocol):
    """The methods that commands call. `serving.client.Client` documents each of them."""

    def listing(self) -> Listing: ...
    def task(self, name: str) -> TaskInfo: ...
    def history(self, name: str) -> list[HistoryEntry]: ...
    def publish(
        self,
        task: str,
        delta: Path,
        alias: str = ...,
        *,
        allow_other_labels: bool = ...,
        wait: float | None = ...,
        progress: Callable[[int, int], None] | None = ...,
    ) -> Change: ...
    def promote(
        self, task: str, digest: str, alias: str = ..., *, allow_other_labels: bool = ..., wait: float | None = ...
    ) -> Change: ...
    def rollback(self, task: str, alias: str = ..., *, wait: float | None = ...) -> Change: ...
    def delete_version(self, task: str, digest: str, *, force: bool = ..., wait: float | None = ...) -> Change: ...
    def delete_task(self, task: str, *, force: bool = ..., wait: float | None = ...) -> Change: ...
    def set_route(
        self,
        task: str,
        weights: Mapping[str, int],
        *,
        shadow: str | None = ...,
        allow_other_labels: bool = ...,
        wait: float | None = ...,
    ) -> Change: ...
    def clear_route(self, task: str, *, wait: float | None = ...) -> Change: ...
    def rollback_route(self, task: str, *, wait: float | None = ...) -> Change: ...
    def adopt_store(self, *, wait: float | None = ...) -> Change: ...
    def collect_garbage(self) -> Collected: ...
    def keys(self) -> Sequence[KeyInfo]: ...
    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        tasks: Sequence[str] = ...,
        *,
        expires_in: float | None = ...,
        wait: float | None = ...,
    ) -> NewKey: ...
    def revoke_key(self, id: str, *, wait: float | None = ...) -> Revoked: ...
