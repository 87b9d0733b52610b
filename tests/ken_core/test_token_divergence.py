"""The divergence of what one language model says of tokens from what another one said."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import kl_div

from ken_core.token_divergence import Said


def exact(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    wanted, found = (logits.double().log_softmax(-1) for logits in (ours, theirs))
    return float(kl_div(found, wanted, log_target=True, reduction="sum"))


def test_of_a_small_vocabulary_it_is_exact() -> None:
    ours, theirs = torch.randn(7, 1000), torch.randn(7, 1000)
    assert Said.of(ours).divergence(theirs) == pytest.approx(exact(ours, theirs), rel=1e-4)
    assert len(Said.of(ours)) == 7


def test_of_a_large_vocabulary_hardly_anything_is_left_out() -> None:
    torch.manual_seed(0)
    ours = 4 * torch.randn(20, 50_000)
    theirs = ours + 0.3 * torch.randn(20, 50_000)
    found, whole = Said.of(ours).divergence(theirs), exact(ours, theirs)
    assert 0.7 * whole < found < whole
    assert Said.of(ours).divergence(ours) == pytest.approx(0.0, abs=1e-4)


def test_what_cannot_be_said_is_finite_and_nan_is_nan() -> None:
    ours = torch.tensor([[0.0, 1.0, -math.inf]])
    assert Said.of(ours).divergence(ours) == pytest.approx(0.0, abs=1e-6)
    assert Said.of(ours).divergence(torch.tensor([[0.0, -math.inf, 1.0]])) > 1e30
    assert math.isnan(Said.of(ours).divergence(torch.tensor([[0.0, math.nan, 1.0]])))
    assert math.isnan(Said.of(torch.full((1, 2000), math.nan)).divergence(torch.zeros(1, 2000)))
