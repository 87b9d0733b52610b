"""How often each client may have something costly made. Pure: the caller tells the time."""

from __future__ import annotations

from collections.abc import Hashable

_MINUTE = 60.0
_SWEEP_AT = 1024


class MakingRate:
    """A number of makings a minute for each client, all of which it may use at once.

    The generic cell rate algorithm (ITU-T I.371): of each client only the time is kept at which all its makings will be
    allowed again. A client whose time is over is forgotten.

    Args:
        per_minute: makings, at least 1.
    """

    def __init__(self, per_minute: int) -> None:
        self._every = _MINUTE / per_minute
        self._whole_again: dict[Hashable, float] = {}

    def take(self, client: Hashable, now: float) -> float:
        """Use one making.

        Args:
            now: seconds, on any clock that does not go back.

        Returns:
            0.0; or how many seconds the client must wait, if it has none left and none was used.
        """
        whole_again = max(now, self._whole_again.get(client, now)) + self._every
        wait = whole_again - now - _MINUTE
        if wait > 1e-6:  # what sums of intervals lose by rounding
            return wait
        self._whole_again[client] = whole_again
        if len(self._whole_again) > _SWEEP_AT:
            self._whole_again = {known: when for known, when in self._whole_again.items() if when > now}
        return 0.0
