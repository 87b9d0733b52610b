"""Tiny language models behind a real HTTP server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from over_http import Served, served

from ken_core import DeltaFile
from serving.config import load_settings
from serving.service import Service
from serving.store import Store
from tests.tiny_language_tasks import LanguageTasks


@contextmanager
def answering(
    base: LanguageTasks, tasks: Mapping[str, DeltaFile], url: str, data_dir: Path, **settings: Any
) -> Iterator[Served]:
    """Within it, a replica answers for the tasks over HTTP.

    Args:
        url: of the store.
    """
    namespace = f"texts-{uuid.uuid4().hex[:12]}"
    store = Store(url, namespace)
    for task, file in tasks.items():
        store.tasks.publish(task, file)
    chosen = {"base": str(base.path), "data_dir": data_dir, "namespace": namespace, "threads": 1}
    service = Service(load_settings(**chosen | settings), url)
    service.start()
    try:
        with served(service) as found:
            yield found
    finally:
        service.stop()
