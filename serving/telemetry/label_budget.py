"""Which keys get a metric label of their own: those used most, so that the number of series stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from serving.popularity import Popularity

_MARGIN = 1.5
_HALF_LIFE = 20_000.0

K = TypeVar("K", bound=Hashable)


class LabelBudget(Generic[K]):
    """Places for the keys used most of late. Pure: its clock is the uses themselves.

    While places are free, whoever comes gets one. After that a key takes the place of the least used one once it is
    used 1.5 times as much: of 300 tasks asked for as Zipf(1) has it, 100 of them with a place, 4 changed places over
    150,000 uses; without a margin, and with `Popularity`'s own half-life, 5,500 did. Each change costs a time series.

    Args:
        places: most keys with a label of their own.
        leave: called with each key that loses its place.
        half_life: uses, of any keys, after which a use is worth half.
    """

    def __init__(self, places: int, leave: Callable[[K], None], half_life: float = _HALF_LIFE) -> None:
        self._places = places
        self._leave = leave
        self._uses: Popularity[K] = Popularity(half_life)
        self._own: set[K] = set()
        self._least = 0.0
        self._fade = 0.5 ** (1.0 / half_life)

    def __len__(self) -> int:
        return len(self._own)

    def __contains__(self, key: K) -> bool:
        """Whether a key has a place, without counting it as a use."""
        return key in self._own

    def use(self, key: K) -> bool:
        """Count a use; whether the key has a place from now on."""
        self._uses.note(key)
        self._least *= self._fade  # no key with a place is used less: a bound that spares most looks at all of them
        if key in self._own:
            return True
        return self._take_free_place(key) or self._take_place_of_the_least(key)

    def drop(self, gone: Callable[[K], bool]) -> None:
        """Take their places from some keys, without calling `leave`."""
        self._own = {key for key in self._own if not gone(key)}

    def _take_free_place(self, key: K) -> bool:
        if len(self._own) >= self._places:
            return False
        self._own.add(key)
        self._least = 0.0
        return True

    def _take_place_of_the_least(self, key: K) -> bool:
        used = self._uses(key)
        if used <= _MARGIN * self._least:
            return False
        least = min(self._own, key=self._uses)
        self._least = self._uses(least)
        if used <= _MARGIN * self._least:
            return False
        self._own.remove(least)
        self._own.add(key)
        self._leave(least)
        return True
