"""How a task's requests are divided between its versions: by weights, with a stable choice per key, and a shadow."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from serving.errors import InvalidInputError
from serving.names import check_name

MOST_WEIGHT = 1_000_000
_EXPECTED = (
    f'expected {{"weights": {{"live": 90, "canary": 10}}}} with whole numbers from 1 to {MOST_WEIGHT}, '
    '{"shadow": "canary"}, or both'
)
_HASH_BITS = 52  # one less than a float64's significand has, so that no hash rounds to 0 or 1


@dataclass(frozen=True)
class Route:
    """Which versions of a task get which share of its requests, and which version gets a copy.

    Attributes:
        weights: alias or digest to its weight, a whole number from 1 to `MOST_WEIGHT`. By default ``live`` gets all.
        shadow: the alias or digest of a version that gets a copy of each request. Its answers are only compared, never
            given. None for no shadow.

    Raises:
        InvalidInputError: there is no target, a target's name is invalid, or a weight is no such number.
    """

    weights: dict[str, int] = field(default_factory=lambda: {"live": 1})
    shadow: str | None = None

    def __post_init__(self) -> None:
        if not self.weights:
            raise InvalidInputError(f"a route needs a target; {_EXPECTED}")
        for target, weight in self.weights.items():
            check_name("target", target)
            if type(weight) is not int or not 1 <= weight <= MOST_WEIGHT:
                raise InvalidInputError(f"the weight of {target!r} is {weight!r}; {_EXPECTED}")
        if self.shadow is not None:
            check_name("shadow", self.shadow)

    def plain(self) -> dict[str, Any]:
        """The route as plain JSON; `check_route` reads it."""
        shadow = {} if self.shadow is None else {"shadow": self.shadow}
        return {"weights": dict(self.weights), **shadow}

    def choose(self, key: str | None, task: str) -> str:
        """Choose the target of one request.

        Args:
            key: all requests of one key get the same target, on every replica. If one weight changes, keys move only to
                or from its target, and no more of them than the shares require. None: the choice is random.
            task: the choices for different tasks are independent.
        """
        if key is None:
            (chosen,) = random.choices(list(self.weights), list(self.weights.values()))  # noqa: S311 - no secret
            return chosen
        return max(self.weights, key=lambda target: (_score(self.weights[target], f"{task}\0{target}\0{key}"), target))


def check_route(plain: Any) -> Route:
    """Read a route from plain JSON, e.g. ``{"weights": {"live": 90, "canary": 10}, "shadow": "next"}``.

    Weights or shadow may be absent, and the shadow may be null.

    Raises:
        InvalidInputError: the JSON has another form, or `Route` refuses it.
    """
    known = {"weights": dict, "shadow": str}
    given = {k: v for k, v in plain.items() if (k, v) != ("shadow", None)} if isinstance(plain, dict) else {}
    if not given or not all(name in known and isinstance(value, known[name]) for name, value in given.items()):
        raise InvalidInputError(f"this is no route; {_EXPECTED}")
    return Route(**given)


def _score(weight: int, what: str) -> float:
    """Weighted rendezvous hashing (Mosko et al.; "logarithmic method"): the highest score wins."""
    hashed = int.from_bytes(blake2b(what.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    unit = ((hashed >> (64 - _HASH_BITS)) + 0.5) / (1 << _HASH_BITS)
    return -weight / math.log(unit)
