"""How much each key is asked for, by counts that fade. Pure: time is measured in uses."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

_NEGLIGIBLE = 0.01

K = TypeVar("K", bound=Hashable)


class Popularity(Generic[K]):
    """Faded counts of uses by key.

    Args:
        half_life: a use is worth half as much after this many later uses, of any keys.
    """

    def __init__(self, half_life: float = 2000.0) -> None:
        self._half_life = half_life
        self._uses = 0
        self._counts: dict[K, tuple[float, int]] = {}
        self._sweep_at = 1024

    def note(self, key: K) -> None:
        """Count a use of a key."""
        self._uses += 1
        self._counts[key] = (self(key) + 1.0, self._uses)
        if len(self._counts) > self._sweep_at:
            self._forget_the_negligible()

    def __call__(self, key: K) -> float:
        """The key's faded count; 0 for a key that was never used or is forgotten."""
        count, when = self._counts.get(key, (0.0, 0))
        faded: float = 0.5 ** ((self._uses - when) / self._half_life)
        return count * faded

    def _forget_the_negligible(self) -> None:
        self._counts = {k: v for k, v in self._counts.items() if self(k) > _NEGLIGIBLE}
        self._sweep_at = max(1024, 2 * len(self._counts))
