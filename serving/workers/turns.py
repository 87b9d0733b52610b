"""Fair queues: clients have turns one after another, however many items each of them has queued."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """One queue for each client. The next item comes from the client whose last turn was longest ago.

    With k clients in the queues, each of them has one of the next k turns.
    """

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, client: Hashable, item: T) -> None:
        """Put an item at the end of a client's queue."""
        self._queues.setdefault(client, deque()).append(item)

    def take(self) -> T:
        """Remove and return the item whose turn it is.

        Raises:
            IndexError: all queues are empty.
        """
        if not self._queues:
            raise IndexError("all queues are empty")
        client, queue = self._queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._queues[client] = queue
        return item

    def discard(self, client: Hashable, item: T) -> bool:
        """Remove an item from its client's queue. False if it is not there any more."""
        queue = self._queues.get(client)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        if not queue:
            del self._queues[client]
        return True
