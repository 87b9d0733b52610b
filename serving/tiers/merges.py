"""Which merges a replica holds at present, and of what they are made. Bounded, however many are asked for."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable

from serving.errors import ForbiddenError, OverloadedError
from serving.routing.merges import Merge
from serving.tiers.making_rate import MakingRate

_SOON = 1.0
"""Seconds after which a request may have let go of the merge it holds."""


class Merges:
    """The merges that requests have asked for, by digest. Threads may share it.

    A further one takes the place of the one that was asked for least recently. What a request holds keeps its place.

    Args:
        most: merges; 0: none is held, and every request for one is refused.
        per_minute: how many merges a minute each client may have made.
        clock: seconds.
    """

    def __init__(self, most: int = 0, per_minute: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._rate = MakingRate(per_minute)
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Merge] = OrderedDict()
        self._holds: Counter[str] = Counter()
        self._leaving: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, digest: str) -> Merge | None:
        """The merge of this digest; None if the digest is of no merge, or of one that lost its place."""
        with self._lock:
            return self._known.get(digest)

    def hold(self, merge: Merge, client: Hashable, here: bool) -> None:
        """Give a merge a place until `release`, and keep it as long as no other merge needs that place.

        Args:
            client: who asks for it.
            here: whether it need not be made, because a tier holds it.

        Raises:
            ForbiddenError: this replica makes no merges.
            OverloadedError: requests hold as many merges as there may be, or the client had too many made.
        """
        if not self._most:
            raise ForbiddenError(
                "this server makes no merges on request (KEN_MAX_MERGES is 0); publish what `ken merge` makes as a task"
            )
        with self._lock:
            needs_place = merge.digest not in self._known and len(self._known) >= self._most
            gives_way = self._idle() if needs_place else None
            if not (here or self._holds[merge.digest]):  # what another request holds is here, or being made
                self._count_making(client)
            if gives_way is not None:
                del self._known[gives_way]
                self._leaving.add(gives_way)
            self._known[merge.digest] = merge
            self._known.move_to_end(merge.digest)
            self._leaving.discard(merge.digest)
            self._holds[merge.digest] += 1

    def release(self, digest: str) -> None:
        """End one `hold`; nothing happens if the digest is of no merge."""
        with self._lock:
            if self._holds[digest] > 1:
                self._holds[digest] -= 1
            else:
                self._holds.pop(digest, None)

    def leaving(self) -> set[str]:
        """Digests of the merges that lost their place since the last call: the tiers shall drop them."""
        with self._lock:
            left, self._leaving = self._leaving, set()
            return left

    # With the lock held

    def _idle(self) -> str:
        """The merge asked for least recently, of those that no request holds."""
        idle = next((digest for digest in self._known if not self._holds[digest]), None)
        if idle is None:
            raise OverloadedError(
                f"requests hold {self._most} merges, as many as may be (KEN_MAX_MERGES); try again in {_SOON:g} s",
                _SOON,
            )
        return idle

    def _count_making(self, client: Hashable) -> None:
        wait = self._rate.take(client, self._clock())
        if wait:
            raise OverloadedError(
                f"too many different merges were made for this client within a minute (KEN_MERGES_PER_MINUTE); try "
                f"again in {wait:.0f} s, or publish what `ken merge` makes as a task",
                wait,
            )
