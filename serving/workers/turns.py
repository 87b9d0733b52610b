"""Who has the next turn: clients one after another, however much each of them has in line."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A line a client; the next item is from the client whose last turn was longest ago.

    With k clients in line each of them has one of the next k turns.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, client: Hashable, item: T) -> None:
        """Put an item at the end of a client's line."""
        self._lines.setdefault(client, deque()).append(item)

    def take(self) -> T:
        """The item whose turn it is.

        Raises:
            IndexError: nobody is in line.
        """
        if not self._lines:
            raise IndexError("nobody is in line")
        client, line = self._lines.popitem(last=False)
        item = line.popleft()
        if line:
            self._lines[client] = line
        return item

    def discard(self, client: Hashable, item: T) -> bool:
        """Take an item out of its client's line; False if it is not there any more."""
        line = self._lines.get(client)
        if line is None or item not in line:
            return False
        line.remove(item)
        if not line:
            del self._lines[client]
        return True
