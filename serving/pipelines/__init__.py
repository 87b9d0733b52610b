"""Task kinds as they are answered, one file each. `serving.kinds` names them."""

from __future__ import annotations

from importlib import import_module

from serving.errors import InvalidInputError, UnsupportedKindError
from serving.kinds import KINDS, own_kind
from serving.pipelines.base import Parameters, Pipeline

__all__ = ["PIPELINES", "Parameters", "Pipeline", "default_kind", "pipeline_for"]


def _pipeline_of(kind: str) -> Pipeline:
    """The pipeline that the table of kinds names.

    Raises:
        ImportError: there is none, it is of another kind, or no kind is what its head answers by itself.
    """
    module = f"{__name__}.{KINDS[kind].module}"
    found: Pipeline | None = getattr(import_module(module), "PIPELINE", None)
    if found is None or found.kind != kind:
        raise ImportError(f"{module} has no PIPELINE of kind {kind!r}, which serving.kinds expects there")
    if missing := {own_kind(found.head, embeds) for embeds in (False, True)} - KINDS.keys():
        raise ImportError(f"serving.kinds has no kind {missing.pop()!r}, which a {found.head} head answers by itself")
    return found


PIPELINES: dict[str, Pipeline] = {kind: _pipeline_of(kind) for kind in KINDS}


def default_kind(head: str, embeds: bool) -> str:
    """What a task answers unless a request asks for another kind: a backbone that says how it pools gives embeddings.

    Args:
        embeds: whether it says so.

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
        InvalidInputError: it does not; those that do are named.
    """
    found = PIPELINES.get(kind)
    if found is None or found.head != head:
        able = ", ".join(sorted(p.kind for p in PIPELINES.values() if p.head == head))
        raise InvalidInputError(f"kind {kind!r} cannot be asked of a task with a {head} head, which answers {able}")
    return found
