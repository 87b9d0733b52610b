"""Watches that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from watching import Watching

from serving.store import Store


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watching]]:
    with ExitStack() as stack:

        def start(store: Store, **options: Any) -> Watching:
            watching = Watching(store, tmp_path / f"tasks-{len(options)}.json", **options)
            stack.callback(watching.watch.stop)
            stack.callback(watching.hold.set)
            watching.watch.start()
            return watching

        yield start
