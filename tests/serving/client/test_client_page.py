"""Runs the code on the client's page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from listening import listening

from serving.api import create_app
from serving.service import Service
from tests.tiny_checkpoints import Deltas

PAGE = Path(__file__).resolve().parents[3] / "docs" / "client.md"


def test_the_page_runs_block_after_block(
    make_service: Callable[..., Service],
    publish: Callable[..., None],
    deltas: Deltas,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service = make_service()
    publish("trec", deltas.spam)
    with listening(create_app(service)) as url:
        names: dict[str, Any] = {"url": url, "delta_path": deltas.spam_2.path}
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
            exec(compile(block, str(PAGE), "exec"), names)
        names["client"].close()
    printed = capsys.readouterr().out
    assert "there is no task 'trek'; did you mean 'trec'?" in printed
    assert repr([deltas.spam.digest] * 2) in printed
