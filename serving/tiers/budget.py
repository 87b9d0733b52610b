"""Values by key within a budget of bytes. The value that is worth least leaves first. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteBudget(Generic[V]):
    """Values by key within a byte budget.

    When the budget is exceeded, the value that is worth least leaves first; of equally worthy values, the least
    recently used one.

    Args:
        budget: bytes.
        in_use: whether a value must stay.
        worth: what a key's value is worth; by default all values are worth the same.
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
        """Bytes of all values, plus all reserved bytes."""

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[V]:
        return (value for value, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> V | None:
        """The value, which becomes the most recently used one; None if the key is absent."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    @property
    def reserved(self) -> int:
        """Bytes that are counted for values which are not here yet."""
        return sum(self._reserved.values())

    def reserve(self, key: str, nbytes: int) -> None:
        """Count bytes that a value is about to take, until `put` or `give_back`. Other values leave to make room."""
        self.give_back(key)
        self._reserved[key] = nbytes
        self.nbytes += nbytes
        self._shrink(keep=key)

    def give_back(self, key: str) -> None:
        """Drop the reservation of a key, if there is one."""
        self.nbytes -= self._reserved.pop(key, 0)

    def put(self, key: str, value: V, nbytes: int) -> list[V]:
        """Add a value, in place of its reservation. The new value and values in use never leave.

        Returns:
            The values that left to make room.
        """
        self.give_back(key)
        self.pop(key)
        self._items[key] = (value, nbytes)
        self.nbytes += nbytes
        return self._shrink(keep=key)

    def pop(self, key: str) -> V | None:
        """Take a value out; None if the key is absent."""
        item = self._items.pop(key, None)
        if item is None:
            return None
        self.nbytes -= item[1]
        return item[0]

    def _shrink(self, keep: str) -> list[V]:
        left: list[V] = []
        if self.nbytes <= self.budget:
            return left
        for key in sorted(self._items, key=self._worth):  # a stable sort: of equals, the least recently used
            if self.nbytes <= self.budget:
                break
            if key != keep and not self._in_use(self._items[key][0]):
                value = self.pop(key)
                assert value is not None
                left.append(value)
        return left
