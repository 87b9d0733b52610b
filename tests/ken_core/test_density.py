from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ken_core.density import bandwidths, density

TOLERANCE = 1e-3
"""The error that the fast mode promises, as a share of the row's largest density."""

seeds = st.integers(0, 2**32 - 1)


def moderate_rows(max_size: int = 120):
    numbers = st.floats(-1e6, 1e6, width=32, allow_subnormal=True)
    return hnp.arrays(np.float32, st.integers(1, max_size), elements=numbers)


def assert_fast_equals_exact(row: np.ndarray) -> None:
    exact = density(row[None], exact=True)[0]
    fast = density(row[None])[0]
    assert np.isfinite(exact).all()
    assert np.isfinite(fast).all()
    assert np.abs(fast - exact).max() <= TOLERANCE * exact.max()


@pytest.fixture(scope="module")
def reference(shared):
    """(row, its density in double precision from scikit-learn) for every reference case."""
    with np.load(shared / "vectors" / "ken_reference.npz", allow_pickle=False) as vectors:
        names = sorted(n for n in vectors.files if n.startswith("density_") and n.endswith("_row"))
        cases = [(vectors[n], vectors[n.replace("_row", "_values")]) for n in names]
    assert len(cases) >= 13
    return cases


def test_exact_mode_equals_the_reference_to_ten_digits(reference):
    for row, expected in reference:
        np.testing.assert_allclose(density(row[None], exact=True)[0], expected, rtol=1e-10, atol=0)


def test_fast_mode_is_within_a_thousandth_of_the_largest_density_on_the_reference(reference):
    for row, expected in reference:
        assert np.abs(density(row[None])[0] - expected).max() <= TOLERANCE * expected.max()


def test_exact_mode_equals_the_definition_written_out():
    row = np.array([0.5, -1.0, 2.0, 0.25])
    h = 1.06 * row.std() * 4**-0.2
    expected = [np.mean([np.exp(-(((a - b) / h) ** 2) / 2) for b in row]) / (h * np.sqrt(2 * np.pi)) for a in row]
    np.testing.assert_allclose(density(row[None], exact=True)[0], expected, rtol=1e-14)


def test_the_bandwidth_is_scotts_with_the_population_deviation():
    rows = np.array([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 0.0, 1.0]])
    np.testing.assert_allclose(bandwidths(rows), [1.06 * np.std(r, ddof=0) * 4**-0.2 for r in rows], rtol=1e-15)


@given(row=moderate_rows())
def test_fast_mode_is_within_its_tolerance_on_any_row(row):
    assert_fast_equals_exact(row)


@settings(max_examples=25)
@given(seed=seeds, n=st.sampled_from([2, 3, 17, 384, 1200]))
def test_fast_mode_is_within_its_tolerance_on_cauchy_rows(seed, n):
    assert_fast_equals_exact(np.random.default_rng(seed).standard_cauchy(n))


@settings(max_examples=25)
@given(seed=seeds, n=st.integers(2, 700), outlier=st.sampled_from([1e2, 1e4, 1e8, 1e15]))
def test_fast_mode_is_within_its_tolerance_when_one_element_lies_far_away(seed, n, outlier):
    row = np.random.default_rng(seed).standard_normal(n)
    row[seed % n] = outlier
    assert_fast_equals_exact(row)


@given(
    level=st.floats(-1e6, 1e6, width=32),
    steps=st.lists(st.integers(0, 3), min_size=2, max_size=80),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_fast_mode_is_within_its_tolerance_on_rows_a_few_ulps_wide(level, steps, dtype):
    row = np.full(len(steps), level, dtype)
    for i, step in enumerate(steps):
        for _ in range(step):
            row[i] = np.nextafter(row[i], dtype(np.inf))
    assert_fast_equals_exact(row)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 1e-20, 1e20, 1e37])
def test_fast_mode_is_within_its_tolerance_over_the_whole_range_of_float32(scale):
    normal = np.random.default_rng(3).standard_normal(400).clip(-3, 3) * 8
    row = (normal * scale).astype(np.float32)
    assert np.unique(row).size > 10
    assert_fast_equals_exact(row)


@given(row=moderate_rows(60), power=st.integers(-300, 300), exact=st.booleans())
def test_scaling_a_row_by_a_power_of_two_scales_its_density_inversely_and_exactly(row, power, exact):
    wide = row.astype(np.float64).round(3)[None]
    if wide.min() == wide.max():
        return
    scaled = density(wide * 2.0**power, exact=exact)
    np.testing.assert_array_equal(scaled, density(wide, exact=exact) * 2.0**-power)


@given(value=st.floats(-1e100, 1e100), n=st.integers(1, 50), exact=st.booleans())
@example(value=0.1, n=10, exact=False)
def test_all_elements_of_a_constant_row_have_density_one(value, n, exact):
    """Also where the mean is not the constant: ten times 0.1 in float64 have a standard deviation of 1e-17."""
    np.testing.assert_array_equal(density(np.full((1, n), value), exact=exact), np.ones((1, n)))


@given(rows=hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(1)), elements=st.floats(-9, 9, width=32)))
def test_a_row_of_one_element_has_density_one(rows):
    np.testing.assert_array_equal(density(rows), np.ones_like(rows, np.float64))


@settings(max_examples=30)
@given(seed=seeds, n=st.integers(1, 300), exact=st.booleans(), order=st.permutations(range(6)))
def test_a_row_has_the_same_density_to_the_bit_whatever_rows_stand_beside_it(seed, n, exact, order):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((6, n)) * rng.choice([1e-9, 1.0, 1e9], (6, 1))
    rows[1] = rng.standard_cauchy(n)
    rows[2] = 7.0
    together = density(rows, exact=exact)
    np.testing.assert_array_equal(density(rows[list(order)], exact=exact), together[list(order)])
    for row, expected in zip(rows, together, strict=True):
        np.testing.assert_array_equal(density(row[None], exact=exact)[0], expected)


@given(row=moderate_rows(), seed=seeds)
def test_equal_elements_have_equal_densities(row, seed):
    doubled = np.concatenate([row, row[np.random.default_rng(seed).permutation(row.size)]])
    found = density(doubled[None])[0]
    for value in np.unique(row):
        assert np.unique(found[doubled == value]).size == 1


@given(row=moderate_rows())
def test_a_density_is_finite_and_not_negative(row):
    found = density(row[None])
    assert np.isfinite(found).all()
    assert not np.signbit(found).any()


def test_the_input_is_left_as_it_was():
    rows = np.random.default_rng(0).standard_normal((3, 40))
    before = rows.copy()
    density(rows)
    density(rows, exact=True)
    np.testing.assert_array_equal(rows, before)
