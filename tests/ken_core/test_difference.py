"""How far two deltas of one base are apart, on numbers that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from math import isnan, sqrt
from typing import Any

import numpy as np
import pytest
import torch

from ken_core import BaseMismatchError, Budget, Delta, Selection, extract, open_tuned
from ken_core.bits import as_bits, pack_mask
from ken_core.difference import Apart, difference
from ken_core.entries import LowRank, Sparse

NAME = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def nothing(tiny: Any) -> Delta:
    """A delta that changes no tensor of the backbone."""
    tuned = open_tuned(str(tiny.tuned("apart", ["no", "yes"], seed=4)))
    found = extract(tiny.base, tuned, Selection("random", Budget(fraction=0.01)))
    return replace(found, sparse={})


def shifting(tiny: Any, nothing: Delta, shifts: dict[int, float]) -> Delta:
    """A delta that adds some numbers to elements of one matrix."""
    matrix = tiny.base.backbone_tensors[NAME]
    places = np.zeros(matrix.numel(), np.bool_)
    places[list(shifts)] = True
    ordered = [shifts[place] for place in sorted(shifts)]
    values = matrix.reshape(-1)[torch.from_numpy(places)] + torch.tensor(ordered)
    entry = Sparse(tuple(matrix.shape), matrix.dtype, len(shifts), pack_mask(places), as_bits(values))
    return replace(nothing, sparse={NAME: entry})


def test_positions_and_values_are_compared(tiny: Any, nothing: Delta) -> None:
    first, second = shifting(tiny, nothing, {0: 3.0, 5: 4.0}), shifting(tiny, nothing, {5: 2.0, 9: 1.0, 700: 2.0})
    found = difference(tiny.base, first, second)
    assert (found.positions.first, found.positions.second, found.positions.both) == (2, 3, 1)
    assert found.positions.jaccard == 1 / 4
    assert found.positions.both_by_chance == pytest.approx(2 * 3 / 1024)
    assert found.shifts.cosine == pytest.approx(8 / (5 * 3), rel=1e-5)
    assert found.shifts.distance == pytest.approx(sqrt((25 + 9 - 16) / 17), rel=1e-5)
    assert found.at_shared.elements == 1
    assert found.at_shared.distance == pytest.approx(2 / sqrt(10), rel=1e-5)
    assert (found.only_first, found.only_second, found.head_differs) == ((), (), False)


def test_a_shift_of_low_rank_changes_all_places_of_its_matrix(tiny: Any, nothing: Delta) -> None:
    rows, columns = tiny.base.backbone_tensors[NAME].shape
    factors = LowRank(torch.ones(1, columns), torch.ones(rows, 1), 0.5)
    whole = replace(nothing, lowrank={NAME: factors})
    found = difference(tiny.base, whole, shifting(tiny, nothing, {3: 0.5}))
    assert found.positions.first == found.positions.second == 0
    assert found.at_shared.elements == 1
    assert found.at_shared.cosine == pytest.approx(1.0, rel=1e-5)
    assert found.shifts.cosine == pytest.approx(1 / sqrt(rows * columns), rel=1e-4)


def test_tensors_that_one_alone_changes_and_other_heads_are_named(tiny: Any, nothing: Delta) -> None:
    other = replace(nothing, head={name: tensor + 1 for name, tensor in nothing.head.items()})
    found = difference(tiny.base, shifting(tiny, nothing, {0: 1.0}), other)
    assert found.only_first == (NAME,)
    assert found.head_differs
    assert isnan(found.shifts.cosine)
    assert found.shifts.distance == pytest.approx(sqrt(2))


def test_nothing_is_no_distance_from_nothing() -> None:
    assert isnan(Apart().cosine)
    assert isnan(Apart().distance)


def test_a_delta_of_another_base_is_refused(tiny: Any, nothing: Delta) -> None:
    with pytest.raises(BaseMismatchError, match="use the base it names"):
        difference(tiny.base, nothing, replace(nothing, base_fingerprint="0" * 64))
