"""The lineage of a store: tells a store that went on from one that was emptied, restored or exchanged. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MOST_MARKS = 1000
"""Marks of this many latest changes are kept, as in ``record.lua``."""


@dataclass(frozen=True)
class Lineage:
    """What tells two stores apart that are at the same revision.

    Attributes:
        epoch: drawn with the store's first change; empty before that, and where earlier versions made all changes.
        marks: revision -> the mark of the change that led to it. A mark depends on all changes before, so two stores
            with the same mark at a revision have the same past. A change by an earlier version has no mark.
        adoptions: the times when a person confirmed what the store holds, each with the epoch of the history that this
            ended, see `Adoptions`.
    """

    epoch: str = ""
    marks: Mapping[int, str] = field(default_factory=dict)
    adoptions: frozenset[str] = frozenset()

    def continues(self, revision: int, earlier: Lineage, earlier_revision: int) -> bool:
        """Whether this lineage at `revision` may be what `earlier` became. Where marks are missing, it may."""
        if revision < earlier_revision or (earlier.epoch and self.epoch != earlier.epoch):
            return False
        return not self._parts_from(earlier, earlier_revision)

    def surely_continues(self, earlier: Lineage, earlier_revision: int) -> bool:
        """Whether marks show that this lineage is what `earlier` became."""
        mark = self.marks.get(earlier_revision)
        return mark is not None and mark == earlier.marks.get(earlier_revision)

    def new_at(self, revision: int, earlier: Lineage, earlier_revision: int) -> bool:
        """Whether the change that led to `revision` here is not among those that led to `earlier_revision` there."""
        return revision > earlier_revision or self.epoch != earlier.epoch or self._parts_from(earlier, revision)

    def confirmed_since(self, earlier: Lineage) -> bool:
        """Whether a person confirmed this store in place of `earlier`, after it was `earlier`."""
        return any(told.partition(" ")[2] == earlier.epoch for told in self.adoptions - earlier.adoptions)

    def with_marks(self, marks: Mapping[int, str]) -> Lineage:
        """This lineage after further changes."""
        latest = max(marks, default=0)
        kept = {r: m for r, m in {**self.marks, **marks}.items() if m and r > latest - MOST_MARKS}
        return Lineage(self.epoch or next(iter(kept.values()), ""), kept, self.adoptions)

    def _parts_from(self, other: Lineage, revision: int) -> bool:
        ours, theirs = self.marks.get(revision), other.marks.get(revision)
        return ours is not None and theirs is not None and ours != theirs
