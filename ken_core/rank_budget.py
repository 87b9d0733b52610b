"""How many parts of each tensor's shift fit a budget, so that together they keep as much energy as they can. Pure.

A part is a singular component, or a row. It has an energy, the sum of the squares of what it adds, and a cost in bytes.
Parts are taken in the order of energy per byte, down to one threshold for all tensors. For parts of equal cost this is
one threshold on singular values; a component of an embedding costs its many rows, and has to be worth them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Form = Literal["factors", "rows"]
_PRECISION = 1e-6


@dataclass(frozen=True)
class Offer:
    """The parts of one tensor in one form.

    Attributes:
        energies: of each part, the largest first.
        cost: bytes of one part.
    """

    energies: npt.NDArray[np.float64]
    cost: float

    def worth(self, threshold: float) -> int:
        """How many parts have any energy, and at least so much per byte."""
        some = np.finfo(np.float64).tiny
        return int(np.searchsorted(-self.energies, -max(threshold * self.cost, some), side="right"))


@dataclass(frozen=True)
class Choice:
    """A tensor's form and the number of its parts that are kept."""

    form: Form
    count: int
    energy: float
    nbytes: float


Offers = Mapping[str, Mapping[Form, Offer]]
"""By tensor, each form that it can have."""


def within_bytes(offers: Offers, nbytes: float) -> dict[str, Choice]:
    """What keeps the most energy in at most `nbytes`."""
    if _bytes(everything := _chosen(offers, 0.0)) <= nbytes:
        return everything  # also where nothing has any energy

    def holds(chosen: dict[str, Choice]) -> bool:
        return _bytes(chosen) <= nbytes

    return max((_fitting(forms, holds) for forms in _settled(offers, holds)), key=_energy)


def with_energy(offers: Offers, energy: float) -> dict[str, Choice]:
    """What keeps at least `energy` in the fewest bytes; everything, where that is less."""
    if _energy(_chosen(offers, 0.0)) <= energy:
        return _chosen(offers, 0.0)

    def lacks(chosen: dict[str, Choice]) -> bool:
        return _energy(chosen) < energy

    settled = [forms for forms in _settled(offers, lacks) if not lacks(_chosen(forms, 0.0))]
    return min((_chosen(forms, _thresholds_around(forms, lacks)[0]) for forms in settled), key=_bytes)


def _settled(offers: Offers, holds: Callable[[dict[str, Choice]], bool]) -> Iterator[Offers]:
    """The offers with one form for each tensor: those below the threshold, and those above.

    A tensor that changes its form there takes far more bytes at once. With its form settled, energy and bytes grow by
    one part after another, and nothing of a budget is left over.
    """
    for threshold in _thresholds_around(offers, holds):
        chosen = _chosen(offers, threshold)
        yield {name: {choice.form: offers[name][choice.form]} for name, choice in chosen.items()}


def _fitting(offers: Offers, holds: Callable[[dict[str, Choice]], bool]) -> dict[str, Choice]:
    if holds(everything := _chosen(offers, 0.0)):
        return everything
    return _chosen(offers, _thresholds_around(offers, holds)[1])


def _thresholds_around(offers: Offers, holds: Callable[[dict[str, Choice]], bool]) -> tuple[float, float]:
    """Two neighbouring thresholds: below the first `holds` is false, above the second it is true.

    Both energy and bytes fall as the threshold rises, whichever form a tensor has: its form is the one that is worth
    most at the threshold.
    """
    prices = np.concatenate([o.energies / o.cost for forms in offers.values() for o in forms.values()])
    below, above = float(prices[prices > 0].min()) / 2, float(prices.max()) * 2
    while above / below > 1 + _PRECISION:
        middle = float(np.sqrt(below * above))
        if holds(_chosen(offers, middle)):
            above = middle
        else:
            below = middle
    return below, above


def _chosen(offers: Offers, threshold: float) -> dict[str, Choice]:
    return {
        name: _best([_taken(f, o, threshold) for f, o in forms.items()], threshold) for name, forms in offers.items()
    }


def _best(choices: list[Choice], threshold: float) -> Choice:
    return max(choices, key=lambda choice: choice.energy - threshold * choice.nbytes)


def _taken(form: Form, offer: Offer, threshold: float) -> Choice:
    count = offer.worth(threshold)
    return Choice(form, count, float(offer.energies[:count].sum()), count * offer.cost)


def _bytes(chosen: dict[str, Choice]) -> float:
    return sum(choice.nbytes for choice in chosen.values())


def _energy(chosen: dict[str, Choice]) -> float:
    return sum(choice.energy for choice in chosen.values())
