"""Opens the server or the store that a command works on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from serving.config import default_data_dir

if TYPE_CHECKING:
    from serving.cli.backend import Backend
    from serving.store import Store


@contextmanager
def open_backend(url: str | None, redis_url: str | None, data_dir: Path | None, namespace: str) -> Iterator[Backend]:
    """The server at `url`, with the key in ``KEN_API_KEY``; without a `url`, the store of `open_store`."""
    if url:
        from serving.cli.over_http import ServerBackend

        with ServerBackend(url, os.environ.get("KEN_API_KEY") or None) as server:
            yield server
        return
    from serving.cli.direct import StoreBackend

    with open_store(redis_url, data_dir, namespace) as store:
        yield StoreBackend(store)


@contextmanager
def open_store(redis_url: str | None, data_dir: Path | None, namespace: str) -> Iterator[Store]:
    """The store at `redis_url`; without one, the embedded store of `data_dir` or of the default data directory."""
    from serving.store import Store
    from serving.store.embedded import embedded_store

    if redis_url:
        yield Store(redis_url, namespace)
        return
    with embedded_store(data_dir or default_data_dir()) as embedded:
        yield Store(embedded, namespace)
