"""What a replica answers from once the store's past is not the past that the replica knows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from serving.store import Table

V = TypeVar("V")


@dataclass(frozen=True)
class Succession:
    """The table to answer from after the store was read.

    Attributes:
        other_history: whether the store was emptied, restored or exchanged since `table` was known. The table then
            holds what was known, and beside it what was changed in the store since.
    """

    table: Table
    other_history: bool


def succeed(known: Table | None, found: Table, was_other: bool, read: Table | None = None) -> Succession:
    """Decide what becomes of the table that a replica knows.

    Args:
        known: what the replica answers from; None at its first start.
        found: what the store holds.
        was_other: whether the store had another history when it was last read. Then only marks, or a person's word,
            show that it is the known store again.
        read: what the store of the other history held when it was last read; None where this process did not read it.
    """
    if known is None or _is_successor(known, found, was_other):
        return Succession(found, other_history=False)
    if was_other and read is not None and found.lineage.surely_continues(read.lineage, read.revision):
        return Succession(carry_over(known, read, found), other_history=True)
    new = {
        name: task
        for name, task in found.tasks.items()
        if found.lineage.new_at(task.revision, known.lineage, known.revision)
    }
    tasks, locked = {**known.tasks, **new}, known.locked or found.locked
    return Succession(replace(known, tasks=tasks, keys=_keys(known, found), locked=locked), other_history=True)


def carry_over(known: Table, before: Table, after: Table) -> Table:
    """Put what was changed in a store of another history beside what is known.

    Args:
        before, after: what the store held before the changes, and after them.
    """
    tasks = _with_changes(known.tasks, before.tasks, after.tasks)
    keys = _with_changes(known.keys, before.keys, after.keys)
    return replace(known, tasks=tasks, keys=keys, locked=known.locked or after.locked)


def _with_changes(known: Mapping[str, V], before: Mapping[str, V], after: Mapping[str, V]) -> dict[str, V]:
    gone = before.keys() - after.keys()
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    return {**{name: value for name, value in known.items() if name not in gone}, **changed}


def _is_successor(known: Table, found: Table, was_other: bool) -> bool:
    if found.lineage.confirmed_since(known.lineage) or found.lineage.surely_continues(known.lineage, known.revision):
        return True
    return not was_other and found.lineage.continues(found.revision, known.lineage, known.revision)


def _keys(known: Table, found: Table) -> Mapping[str, dict[str, Any]]:
    """A restored store may hold keys that were revoked since; in a store with no common past every key is new."""
    if found.lineage.epoch == known.lineage.epoch:
        return known.keys
    return {**found.keys, **known.keys}
