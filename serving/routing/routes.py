"""How a task's requests are split between its versions: weights, a choice that holds for a key, and a shadow."""

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
_HASH_BITS = 52  # one less than a float64's significand holds, so that no hash rounds to 0 or 1


@dataclass(frozen=True)
class Route:
    """Shares of a task's requests, and who else gets a copy of them.

    Attributes:
        weights: an alias or a digest to a whole number above 0; all to ``live`` if nothing else is said.
        shadow: an alias or a digest that is asked the same, only to compare: its answers are never given. None: none.

    Raises:
        InvalidInputError: no target, a name no alias can have, or a weight that is no such number.
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
        """What JSON can hold; `check_route` reads it."""
        shadow = {} if self.shadow is None else {"shadow": self.shadow}
        return {"weights": dict(self.weights), **shadow}

    def choose(self, key: str | None, task: str) -> str:
        """The target of one request.

        Args:
            key: requests of one key get one target, on every replica. Changing one weight moves keys only to or
                from its target, and no more than the shares say. None: by chance.
            task: keys of different tasks fall independently.
        """
        if key is None:
            (chosen,) = random.choices(list(self.weights), list(self.weights.values()))  # noqa: S311 - no secret
            return chosen
        return max(self.weights, key=lambda target: (_score(self.weights[target], f"{task}\0{target}\0{key}"), target))


def check_route(plain: Any) -> Route:
    """A route from what JSON held, e.g. ``{"weights": {"live": 90, "canary": 10}, "shadow": "next"}``.

    Either of the two may be left out, and the shadow may be null.

    Raises:
        InvalidInputError: it has another form, or `Route` refuses it.
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
