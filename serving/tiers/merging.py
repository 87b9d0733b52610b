"""Makes the delta of a merge from the deltas of its parts, and refuses parts that cannot be merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ken_core import Checkpoint, Delta
from ken_core.arithmetic import combine
from ken_core.embedding import Embedding
from ken_core.errors import MergeError
from ken_core.manifest import Manifest
from ken_core.merge_parts import Part
from serving.errors import UnmergeableError
from serving.routing.merges import Merge
from serving.routing.versions import SHORTEST


class Merging:
    """Makes merges of deltas.

    Args:
        base: of all parts.
        manifest_of: a delta's manifest, where it is at hand without the delta.
    """

    def __init__(self, base: Checkpoint, manifest_of: Callable[[str], Manifest | None]) -> None:
        self._base = base
        self._manifest_of = manifest_of

    def check(self, merge: Merge) -> None:
        """Compare what manifests tell of a merge's parts, before any part is fetched and decoded.

        Raises:
            UnmergeableError: they are of different kinds, or make vectors in different ways.
        """
        manifests = {part.digest: self._manifest_of(part.digest) for part in merge.parts}
        _refuse_unlike(merge, {digest: _of_manifest(told) for digest, told in manifests.items() if told is not None})

    def __call__(self, merge: Merge, deltas: Sequence[Delta]) -> Delta:
        """The delta of a merge.

        Args:
            deltas: of its parts, in their order.

        Raises:
            UnmergeableError: they cannot be merged; the message says why.
        """
        parts = [Part(delta, part.weight, part.digest) for part, delta in zip(merge.parts, deltas, strict=True)]
        _refuse_unlike(merge, {part.digest: _of_delta(part.delta) for part in parts})
        try:
            return combine(self._base, parts, merge.recipe, merge.head_at)
        except MergeError as error:
            raise UnmergeableError(str(error)) from error


@dataclass(frozen=True)
class _Facts:
    """What the parts of a merge have in common."""

    base: str
    architecture: str
    embedding: Embedding | None


def _of_manifest(manifest: Manifest) -> _Facts:
    return _Facts(manifest.base.fingerprint, manifest.architecture, manifest.embedding)


def _of_delta(delta: Delta) -> _Facts:
    return _Facts(delta.base_fingerprint, delta.architecture, delta.embedding)


def _refuse_unlike(merge: Merge, told: Mapping[str, _Facts]) -> None:
    """Compare each part with the one whose head the merge has, as far as anything is told of both."""
    head = told.get(merge.head)
    for digest, facts in told.items():
        if head is not None and facts != head:
            # by digests, since others who call these versions otherwise may be told the same
            raise UnmergeableError(
                f"version {digest[:SHORTEST]} cannot be merged with {merge.head[:SHORTEST]}, whose head answers: "
                f"{_difference(facts, head)}; merge tasks of one base and kind, with the same settings for vectors"
            )


def _difference(one: _Facts, other: _Facts) -> str:
    if one.base != other.base:
        return f"it is of the base {one.base[:SHORTEST]}, not {other.base[:SHORTEST]}"
    if one.architecture != other.architecture:
        return f"it is a {one.architecture}, not a {other.architecture}"
    return "it has other settings for vectors (pooling, scaling, prompts, limits)"
