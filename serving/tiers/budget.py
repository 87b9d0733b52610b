"""Values by key within a budget of bytes: what is worth least leaves first. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteBudget(Generic[V]):
    """Values by key within a byte budget. Whatever is worth least leaves first, of equals the least recently used.

    Args:
        in_use: values that never leave.
        worth: of a key; by default all are worth the same.
    """

    def __init__(
        self,
        budget: int,
        in_use: Callable[[V], bool] = lambda value: False,
        worth: Callable[[str], float] = lambda key: 0.0,
    ) -> None:
        self.budget = budget
        self._in_use = in_use
        self._worth = worth
        self._items: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self._reserved: dict[str, int] = {}
        self.nbytes = 0
        """Of all values, and those reserved."""

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[V]:
        return (value for value, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> V | None:
        """The value, now the most recently used; None where it is absent."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    @property
    def reserved(self) -> int:
        """Bytes counted for values that are not there yet."""
        return sum(self._reserved.values())

    def reserve(self, key: str, nbytes: int) -> None:
        """Count bytes that a value is about to take, until `put` or `give_back`; values leave to make room."""
        self.give_back(key)
        self._reserved[key] = nbytes
        self.nbytes += nbytes
        self._shrink(keep=key)

    def give_back(self, key: str) -> None:
        """Forget what was reserved for a key, if anything was."""
        self.nbytes -= self._reserved.pop(key, 0)

    def put(self, key: str, value: V, nbytes: int) -> list[V]:
        """Add a value, in place of what was reserved for it; returns those that left to make room.

        A value in use, or the new one, never leaves.
        """
        self.give_back(key)
        self.pop(key)
        self._items[key] = (value, nbytes)
        self.nbytes += nbytes
        return self._shrink(keep=key)

    def pop(self, key: str) -> V | None:
        item = self._items.pop(key, None)
        if item is None:
            return None
        self.nbytes -= item[1]
        return item[0]

    def _shrink(self, keep: str) -> list[V]:
        left: list[V] = []
        if self.nbytes <= self.budget:
            return left
        for key in sorted(self._items, key=self._worth):  # stable: of equals the least recently used comes first
            if self.nbytes <= self.budget:
                break
            if key != keep and not self._in_use(self._items[key][0]):
                value = self.pop(key)
                assert value is not None
                left.append(value)
        return left
