"""Task kinds as they are answered, one file each. `serving.routing.kinds` names them."""

from __future__ import annotations

from importlib import import_module

from ken_core.manifest import Manifest
from serving.errors import InvalidInputError, UnsupportedKindError
from serving.pipelines.base import Parameters, Pipeline
from serving.routing.kinds import KINDS, own_kind

__all__ = ["PIPELINES", "Parameters", "Pipeline", "default_kind", "kinds_for", "pipeline_for"]


def _pipeline_of(kind: str) -> Pipeline:
    """The pipeline that the table of kinds names.

    Raises:
        ImportError: there is none, it is of another kind, or no kind is what its head answers by itself.
    """
    module = f"{__name__}.{KINDS[kind].module}"
    found: Pipeline | None = getattr(import_module(module), "PIPELINE", None)
    if found is None or found.kind != kind:
        raise ImportError(f"{module} has no PIPELINE of kind {kind!r}, which serving.routing.kinds expects there")
    if missing := {own_kind(found.head, embeds) for embeds in (False, True)} - KINDS.keys():
        raise ImportError(
            f"serving.routing.kinds has no kind {missing.pop()!r}, which a {found.head} head answers by itself"
        )
    return found


PIPELINES: dict[str, Pipeline] = {kind: _pipeline_of(kind) for kind in KINDS}


def default_kind(head: str, embeds: bool) -> str:
    """The kind that a task answers unless a request asks for another; embeddings where its folder says how it pools.

    Args:
        embeds: whether the task's folder says how token vectors become one vector.

    Raises:
        UnsupportedKindError: no kind reads such a head.
    """
    if head not in {p.head for p in PIPELINES.values()}:
        served = ", ".join(sorted({p.head for p in PIPELINES.values()}))
        raise UnsupportedKindError(f"tasks of kind {head!r} are not served; served are {served}")
    return own_kind(head, embeds)


def pipeline_for(kind: str, head: str) -> Pipeline:
    """The pipeline of a kind, if it reads such a head.

    Raises:
        InvalidInputError: the kind does not read such a head; the message names the kinds that do.
    """
    found = PIPELINES.get(kind)
    if found is None or found.head != head:
        able = ", ".join(sorted(p.kind for p in PIPELINES.values() if p.head == head))
        raise InvalidInputError(f"kind {kind!r} cannot be asked of a task with a {head} head, which answers {able}")
    return found


def kinds_for(manifest: Manifest) -> list[str]:
    """The kinds that a delta's task can be asked, its own first; none if no kind reads its head."""
    own = own_kind(manifest.kind, manifest.embedding is not None)
    able = [kind for kind, pipeline in PIPELINES.items() if pipeline.head == manifest.kind and _fits(kind, manifest)]
    return sorted(able, key=lambda kind: kind != own)


def _fits(kind: str, manifest: Manifest) -> bool:
    """Whether a head has the labels that a kind needs, see the kinds' own refusals."""
    if kind == "rerank":
        return len(manifest.labels) == 1
    if kind == "zero-shot-classification":
        return len(manifest.labels) > 1 and any(label.lower().startswith("entail") for label in manifest.labels)
    return True
