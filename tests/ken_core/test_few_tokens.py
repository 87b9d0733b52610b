"""The kernel for few tokens against the product that it stands for, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ken_core.bits import as_bits, pack_mask
from ken_core.kernels import few_tokens
from ken_core.kernels.correction import Shift, linear_shift
from ken_core.kernels.packed import Segment, pack

pytestmark = pytest.mark.skipif(not few_tokens.is_usable(), reason="the processor has no AVX-512")
ROWS = 37
CPU = torch.device("cpu")


class Kept:
    """A random matrix, and a task that keeps some of its own values in it."""

    def __init__(self, mask: np.ndarray, seed: int = 1) -> None:  # type: ignore[type-arg]
        draw = np.random.default_rng(seed)
        self.base, tuned = (torch.from_numpy(draw.standard_normal(mask.shape, np.float32)) for _ in range(2))
        kept = torch.from_numpy(mask)
        self.own = torch.where(kept, tuned, self.base)
        packed = pack([Segment(0, pack_mask(mask), as_bits(tuned[kept]))], torch.float32, CPU)
        self.shift: Shift = linear_shift(packed, 0, mask.shape)

    def largest_difference(self, tokens: int, own: int) -> float:
        """Of the results for so many tokens, the first of which are the task's."""
        x = torch.randn(tokens, self.base.shape[1], generator=torch.Generator().manual_seed(tokens))
        tiles = few_tokens.tiles_of([(slice(0, own), self.shift), (slice(own, tokens), None)])
        found = few_tokens.product(x, self.base, tiles)
        expected = torch.cat([x[:own].double() @ self.own.double().T, x[own:].double() @ self.base.double().T])
        return float((found - expected).abs().max())


def random_mask(columns: int, kept: float) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(2).random((ROWS, columns)) < kept


@pytest.mark.parametrize("alone", [0, 1 << 60], ids=["all threads", "one thread where nothing is kept"])
@pytest.mark.parametrize("columns", [64, 128, 576])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 1.0])
def test_any_number_of_tokens_is_multiplied_with_the_weights_of_each(
    columns: int, kept: float, alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_tokens, "_ALONE", alone)
    matrix = Kept(random_mask(columns, kept))
    for tokens in range(1, few_tokens.MOST_MIXED + 2):
        for own in {0, tokens // 2, tokens}:
            assert matrix.largest_difference(tokens, own) < 1e-4, (tokens, own)


def test_rows_of_nothing_kept_may_lie_beside_rows_that_are_kept_whole() -> None:
    mask = random_mask(192, 0.1)
    mask[::3], mask[1::3] = False, True
    matrix = Kept(mask)
    for tokens in (1, 5, 8, 9):
        assert matrix.largest_difference(tokens, tokens) < 1e-4


def test_groups_stand_one_behind_the_other() -> None:
    for groups in ([slice(1, 2)], [slice(0, 2), slice(3, 4)], [slice(0, 2), slice(1, 4)]):
        with pytest.raises(ValueError, match=r"a group begins with token \d; expected \d, the one behind"):
            few_tokens.tiles_of([(one, None) for one in groups])


def test_a_value_that_the_task_replaces_does_not_reach_its_tokens() -> None:
    mask = np.zeros((3, 64), bool)
    mask[0, 0] = True
    matrix = Kept(mask)
    matrix.base[0, 0] = float("nan")
    tiles = few_tokens.tiles_of([(slice(0, 1), matrix.shift), (slice(1, 2), None)])
    found = few_tokens.product(torch.ones(2, 64), matrix.base, tiles)
    assert torch.isfinite(found[0]).all()
    assert torch.isnan(found[1, 0])


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_result_is_float32_whatever_torchs_default_is_meanwhile(default: torch.dtype) -> None:
    matrix, x = Kept(random_mask(128, 0.3)), torch.ones(4, 128)
    tiles = few_tokens.plain_tiles(4)
    expected = few_tokens.product(x, matrix.base, tiles)
    torch.set_default_dtype(default)
    try:
        found = few_tokens.product(x, matrix.base, tiles)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("x", "tokens"),
    [(torch.ones(2, 64, dtype=torch.float64), 2), (torch.ones(2, 128), 2), (torch.ones(64), 1), (torch.ones(2, 64), 3)],
    ids=["float64", "other width", "one axis", "other tiles"],
)
def test_what_does_not_fit_is_refused(x: torch.Tensor, tokens: int) -> None:
    with pytest.raises(ValueError, match=r"expected float32 \[tokens, 64\]|the tiles are of other than 2 tokens"):
        few_tokens.product(x, torch.ones(3, 64), few_tokens.plain_tiles(tokens))
