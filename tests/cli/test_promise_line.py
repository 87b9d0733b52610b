"""What a calibration promises, in words."""

from __future__ import annotations

from typing import Any

import pytest

from serving.cli.promise_line import promise_line

RECORD: dict[str, Any] = {
    "metric": "perplexity",
    "examples": 240,
    "tokens": 9000,
    "confidence": 0.9,
    "promised": 0.02,
    "tuned_score": 12.0,
    "score": 12.1,
}


@pytest.mark.parametrize(
    ("reading", "about"),
    [
        (None, "on all such text. Measured"),
        ({"longest": 512, "cut": 0, "divided": 0}, "on all such text. Measured"),
        ({"longest": 1024, "cut": 3, "divided": 0}, "on all such text, the first 1,024 tokens of each. Measured"),
        ({"longest": 8, "cut": 0, "divided": 7}, "on all such text, each part of at most 8 tokens by itself. Measured"),
    ],
)
def test_a_promise_is_about_text_as_it_was_read(reading: dict[str, int] | None, about: str) -> None:
    assert about in promise_line({**RECORD, "reading": reading})


def test_the_base_is_named_where_it_was_judged() -> None:
    assert "perplexity 12.1000 against the fine-tune's 12.0000 on 9,000 tokens" in promise_line(RECORD)
    told = promise_line({**RECORD, "base_score": 20.0})
    assert "perplexity 12.1000 against the fine-tune's 12.0000 and the base's 20.0000 on 9,000 tokens" in told


def test_a_record_that_does_not_say_how_texts_were_read_is_told() -> None:
    assert "at most 2 % above the fine-tune's on all such text. Measured" in promise_line(RECORD)
