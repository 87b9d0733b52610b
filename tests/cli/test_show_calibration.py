"""What is said of the next smaller delta, of which nothing could be promised."""

from __future__ import annotations

import pytest

from ken_core.manifest import Calibration, Trial
from serving.cli.show_calibration import _next


@pytest.mark.parametrize(
    ("metric", "tuned", "score", "told"),
    [
        ("agreement", 1.0, 0.93, "has agreement 0.9300, the fine-tune 1.0000: more than the tolerance"),
        ("agreement", 1.0, 0.951, "has agreement 0.9510, the fine-tune 1.0000: hardly less than the tolerance"),
        ("perplexity", 10.0, 10.6, "has perplexity 10.6000, the fine-tune 10.0000: more than the tolerance"),
    ],
)
def test_a_loss_beyond_the_tolerance_is_told_apart_from_one_just_within(
    metric: str, tuned: float, score: float, told: str
) -> None:
    failed = Trial(method="magnitude", scope="global", codec="int4", bytes=1000, score=score, bound=0.1)
    record = Calibration.model_validate(
        {
            "metric": metric,
            "examples": 240,
            "tokens": 9000,
            "tolerance": 0.05,
            "confidence": 0.9,
            "promised": 0.05,
            "tuned_score": tuned,
            "score": tuned,
            "tried": [failed.model_dump()],
        }
    )
    assert told in _next(failed, record)
