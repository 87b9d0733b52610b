"""When two answers are the same: in every word, and in numbers within 1e-5."""

from __future__ import annotations

from typing import Any

TOLERANCE = 1e-5


def assert_same(found: Any, expected: Any, where: str = "answer") -> None:
    """Fails naming the first place where they differ."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), f"{where}: {found} is not {expected}"
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}.{i}")
    elif isinstance(expected, float):
        assert abs(found - expected) <= TOLERANCE, f"{where}: {found} is not {expected}"
    else:
        assert found == expected, f"{where}: {found!r} is not {expected!r}"
