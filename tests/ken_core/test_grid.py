from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ken_core.errors import SelectionError
from ken_core.grid import keep_nearest_to_grid
from ken_core.selection import Budget, Selection, select


def written_out(row: np.ndarray, k: int) -> np.ndarray:
    """The authors' procedure as their repository states it: one step on each line, in quadratic time."""
    wide = row.astype(np.float64)
    h = 1.06 * wide.std() * row.size**-0.2
    points = np.linspace(row.min(), row.max(), k, dtype=row.dtype)
    z = (points.astype(np.float64)[:, None] - wide) / h
    density = np.exp(-z * z / 2).mean(axis=1) / (h * np.sqrt(2 * np.pi))
    free, taken = np.ones(row.size, bool), []
    for point in points[np.argsort(-np.round(density), kind="stable")]:
        if not free.any():
            break
        nearest = int(np.where(free, np.abs(row - point), np.inf).argmin())
        free[nearest] = False
        taken.append(row[nearest])
    return np.isin(row, np.array(taken, row.dtype)) & (row != 0)


def test_every_reference_case_is_matched_exactly(shared):
    with np.load(shared / "vectors" / "ken_reference.npz", allow_pickle=False) as vectors:
        cases = sorted(n.removesuffix("_kept") for n in vectors.files if n.endswith("_kept"))
        assert len(cases) == 74
        for case in cases:
            row, k, expected = vectors[f"{case}_row"], int(vectors[f"{case}_k"]), vectors[f"{case}_kept"]
            assert np.array_equal(keep_nearest_to_grid(row[None], k)[0], expected), (case, k)


@st.composite
def rows(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(2, 80))
    kind = draw(st.sampled_from(["normal", "quarters", "cauchy", "integers", "mostly zero"]))
    row = {
        "normal": rng.standard_normal(n) * 0.05,
        "quarters": rng.integers(-4, 5, n) / 4,
        "cauchy": rng.standard_cauchy(n) * 1e4,
        "integers": np.round(rng.standard_normal(n) * 3),
        "mostly zero": rng.choice([0.0, 0.0, 0.0, 0.3, -0.7], n),
    }[kind]
    return row.astype(draw(st.sampled_from([np.float32, np.float64])))


@given(row=rows(), k=st.integers(1, 100))
def test_it_keeps_what_the_procedure_written_out_keeps(row, k):
    assume(row.min() < row.max())
    assert np.array_equal(keep_nearest_to_grid(row[None], k)[0], written_out(row, k))


def test_of_equally_near_elements_the_first_in_the_row_is_taken():
    kept = keep_nearest_to_grid(np.array([[3.0, 1.0, 5.0, 2.0, 4.0]], np.float32), 2)[0]
    assert kept.tolist() == [False, True, True, False, False]  # the ends themselves
    row = np.array([[2.0, -2.0, 1.0, -1.0]], np.float32)  # of the points -2, 0 and 2 the middle lies between two
    assert keep_nearest_to_grid(row, 3)[0].tolist() == [True, True, True, False]
    assert keep_nearest_to_grid(row[:, [0, 1, 3, 2]], 3)[0].tolist() == [True, True, True, False]


def test_a_kept_zero_is_lost_and_equal_elements_stay_together():
    row = np.array([[0.0, 1.0, 1.0, 1.0, 2.0, 0.0]], np.float32)
    assert keep_nearest_to_grid(row, 3)[0].tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize("value", [0.5, -3.0])
def test_a_constant_row_is_kept_whole_unless_nothing_or_zero(value):
    row = np.full((1, 5), value, np.float32)
    assert keep_nearest_to_grid(row, 2).all()
    assert not keep_nearest_to_grid(row, 0).any()
    assert not keep_nearest_to_grid(np.zeros((1, 5), np.float32), 2).any()


def test_more_points_than_elements_keep_the_row():
    row = np.array([[0.25, -1.0, 3.0]], np.float32)
    assert keep_nearest_to_grid(row, 50).all()


def test_select_gives_each_row_its_own_grid_and_takes_k_alone():
    rng = np.random.default_rng(5)
    tuned = torch.from_numpy(rng.standard_normal((6, 40)).astype(np.float32))
    pair = (torch.zeros_like(tuned), tuned)
    mask = dict(select(["w"], lambda name: pair, Selection("ken-grid", Budget("row", k=9))))["w"]
    assert np.array_equal(mask.reshape(6, 40), np.stack([written_out(r, 9) for r in tuned.numpy()]))
    with pytest.raises(SelectionError, match="give k"):
        Selection("ken-grid", Budget("row", fraction=0.25))
