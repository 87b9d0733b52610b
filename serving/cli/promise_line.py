"""What a calibration promises of a delta, in a few sentences."""

from __future__ import annotations

from typing import Any


def promise_line(found: dict[str, Any]) -> str:
    """The promise of a manifest's record, as plain data; of a record without one, what it measured."""
    tokens = found.get("tokens")
    judged = (
        f"{found['examples']:,} examples" if tokens is None else f"{tokens:,} tokens of {found['examples']:,} texts"
    )
    beside = "" if found.get("base_score") is None else f" and the base's {found['base_score']:.4f}"
    measured = f"{found['metric']} {found['score']:.4f} against the fine-tune's {found['tuned_score']:.4f}{beside}"
    if found["promised"] is None:
        return (
            f"{measured} on {judged} by which the delta was also chosen, so nothing is promised "
            "for other text: run ken calibrate again"
        )
    promise = _promise(found["metric"], max(0.0, found["promised"]))
    about = ", by an approximation," if found["metric"] == "perplexity" else ""
    return (
        f"with {100 * found['confidence']:.4g} % confidence{about} {promise} on all such text{_as_read(found)}. "
        f"Measured: {measured} on {judged} that had no part in choosing it"
    )


def _as_read(found: dict[str, Any]) -> str:
    """The part of a text that the promise is about, where texts were not read whole."""
    reading = found.get("reading") or {"cut": 0, "divided": 0}
    parts = [f"the first {reading['longest']:,} tokens of each"] if reading["cut"] else []
    parts += [f"each part of at most {reading['longest']:,} tokens by itself"] if reading["divided"] else []
    return f", {' and '.join(parts)}" if parts else ""


def loss_of(metric: str, share: float) -> str:
    """A loss as its metric counts it, such as ``0.5 points`` or ``2 %``."""
    return f"{100 * share:.3g} %" if metric == "perplexity" else points(share)


def _promise(metric: str, most: float) -> str:
    if metric == "perplexity":
        return f"its perplexity is at most {loss_of(metric, most)} above the fine-tune's"
    return f"it loses at most {loss_of(metric, most)} of {metric}"


def points(share: float) -> str:
    """A share of answers in points, such as ``0.5 points``."""
    told = f"{100 * share:.3g}"
    return f"{told} point" if told == "1" else f"{told} points"
