"""What a calibration promises of a delta, in a few sentences."""

from __future__ import annotations

from typing import Any


def promise_line(found: dict[str, Any]) -> str:
    """The promise of a manifest's record, as plain data; of a record without one, what it measured."""
    measured = f"{found['metric']} {found['score']:.4f} against the fine-tune's {found['tuned_score']:.4f}"
    if found["promised"] is None:
        return (
            f"{measured} on {found['examples']:,} examples by which the delta was also chosen, so nothing is promised "
            "for other text: run ken calibrate again"
        )
    lost = points(max(0.0, found["promised"]))
    return (
        f"with {100 * found['confidence']:.4g} % confidence it loses at most {lost} of {found['metric']} on all such "
        f"text. Measured: {measured} on {found['examples']:,} examples that had no part in choosing it"
    )


def points(share: float) -> str:
    """A share of answers in points, such as ``0.5 points``."""
    told = f"{100 * share:.3g}"
    return f"{told} point" if told == "1" else f"{told} points"
