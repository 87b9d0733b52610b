"""Counts of kept elements, and their sums by layer, by kind of tensor or by anything else that a name tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Group = TypeVar("Group")


@dataclass(frozen=True)
class Tally:
    """How many elements are kept, of how many."""

    kept: int = 0
    elements: int = 0

    @property
    def fraction(self) -> float:
        """Kept of all, 0 to 1; 0 where there are no elements."""
        return self.kept / self.elements if self.elements else 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.kept + other.kept, self.elements + other.elements)


def tally(tallies: Mapping[str, Tally], group: Callable[[str], Group]) -> dict[Group, Tally]:
    """Sum the tallies of tensors by ``group(name)``; groups are in the order in which they first appear."""
    found: dict[Group, Tally] = {}
    for name, one in tallies.items():
        key = group(name)
        found[key] = found.get(key, Tally()) + one
    return found


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies."""
    return sum(tallies, Tally())


def percent(fraction: float) -> str:
    """A fraction as a person reads it: ``12.0%``, ``0.4%``, ``<0.1%``; 0% means exactly nothing, 100% exactly all."""
    value = 100 * fraction
    if value in (0, 100):
        return f"{value:.0f}%"
    if value < 0.1:
        return "<0.1%"
    return ">99.9%" if value >= 99.95 else f"{value:.1f}%"
