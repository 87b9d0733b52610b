"""Singular values and factors of shifts, compared with torch's own decomposition."""

from __future__ import annotations

import pytest
import torch

from ken_core import singular
from ken_core.singular import factors, spectrum

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def pair(rows: int, columns: int, dtype: torch.dtype = torch.float32, rank: int | None = None):
    make = torch.Generator().manual_seed(rows * columns)
    base = torch.randn(rows, columns, generator=make, dtype=torch.float64)
    kept = rank or min(rows, columns)
    strength = torch.logspace(0, -3, kept, dtype=torch.float64)
    left = torch.randn(rows, kept, generator=make, dtype=torch.float64)
    right = torch.randn(kept, columns, generator=make, dtype=torch.float64)
    tuned = base + 0.01 * (left * strength) @ right
    return base.to(dtype), tuned.to(dtype)


def shift_of(found):
    return found[1].double() - found[0].double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (16, 16), (1, 9), (9, 1)])
def test_values_are_those_of_the_decomposition(shape, dtype):
    given = pair(*shape, dtype)
    found = spectrum(given)
    exact = torch.linalg.svdvals(shift_of(given)).numpy()
    assert found.values == pytest.approx(exact, rel=1e-6, abs=1e-7 * exact[0])
    assert found.energy == pytest.approx(float((shift_of(given) ** 2).sum()))


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (16, 16)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_no_matrix_of_the_rank_is_nearer_than_the_factors_product(shape, rank):
    given = pair(*shape)
    a, b = factors(given, spectrum(given), rank)
    assert a.shape == (rank, shape[1])
    assert b.shape == (shape[0], rank)
    left = torch.linalg.matrix_norm(shift_of(given) - b.double() @ a.double())
    rest = torch.linalg.svdvals(shift_of(given))[rank:]
    assert float(left) == pytest.approx(float((rest**2).sum().sqrt()), rel=1e-3, abs=1e-6)


def test_a_component_is_equally_long_in_both_factors():
    given = pair(30, 12)
    a, b = factors(given, spectrum(given), 6)
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-4)


def test_blocks_do_not_show(monkeypatch):
    given = pair(50, 12)
    whole = spectrum(given)
    monkeypatch.setattr(singular, "BLOCK_ELEMENTS", 40)
    parts = spectrum(given)
    assert parts.values == pytest.approx(whole.values, rel=1e-9)
    assert parts.energies == pytest.approx(whole.energies)
    assert torch.allclose(factors(given, parts, 3)[1].abs(), factors(given, whole, 3)[1].abs(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(200, 120), (120, 200)])
def test_of_a_matrix_too_large_to_decompose_the_largest_values_are_found(shape, monkeypatch):
    given = pair(*shape, rank=40)
    exact = torch.linalg.svdvals(shift_of(given)).numpy()
    monkeypatch.setattr(singular, "_LONG", 64)
    monkeypatch.setattr(singular, "_SOUGHT", 30)
    found = spectrum(given)
    assert found.values.shape == (30,)
    assert found.values[:15] == pytest.approx(exact[:15], rel=1e-3)
    assert found.energy == pytest.approx(float((shift_of(given) ** 2).sum()))
    a, b = factors(given, found, 10)
    left = torch.linalg.matrix_norm(shift_of(given) - b.double() @ a.double())
    assert float(left) == pytest.approx(float((exact[10:] ** 2).sum() ** 0.5), rel=0.02)


def test_the_same_pair_gives_the_same_factors(monkeypatch):
    monkeypatch.setattr(singular, "_LONG", 8)
    given = pair(30, 12)
    first, second = (factors(given, spectrum(given), 4) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_matrix_that_did_not_change_has_no_energy():
    base = torch.randn(7, 5)
    found = spectrum((base, base.clone()))
    assert found.energy == 0
    assert not found.values.any()
