"""Opens the server or the store that a command works on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from serving.data_dir import default_data_dir
from serving.terminal import say

if TYPE_CHECKING:
    from serving.cli.backend import Backend
    from serving.store import Store


@contextmanager
def open_backend(url: str | None, redis_url: str | None, data_dir: Path | None, namespace: str) -> Iterator[Backend]:
    """The server at `url`, with the key in ``KEN_API_KEY``; else the store at `redis_url`, else the embedded store.

    Args:
        data_dir: folder of the embedded store; None: the default data directory.

    Raises:
        StoreError: neither URL is given, and the folder holds no embedded store.
    """
    if not (url or redis_url):
        _check_there(data_dir or default_data_dir())
    with _opened(url, redis_url, data_dir, namespace) as backend:
        yield backend


@contextmanager
def open_or_make_backend(
    url: str | None, redis_url: str | None, data_dir: Path | None, namespace: str
) -> Iterator[Backend]:
    """As `open_backend`, for commands that put something into the store: they say so and make an embedded store."""
    from serving.store.embedded import store_folder

    folder = store_folder(data_dir or default_data_dir())
    if not (url or redis_url or folder.is_dir()):
        say(f"no server and no store is named, and there is none here yet: making a store in {folder}")
    with _opened(url, redis_url, data_dir, namespace) as backend:
        yield backend


@contextmanager
def _opened(url: str | None, redis_url: str | None, data_dir: Path | None, namespace: str) -> Iterator[Backend]:
    if url:
        from serving.cli.over_http import ServerBackend

        with ServerBackend(url, os.environ.get("KEN_API_KEY") or None) as server:
            yield server
        return
    from serving.cli.direct import StoreBackend

    with _store(redis_url, data_dir, namespace) as store:
        yield StoreBackend(store)


@contextmanager
def open_store(redis_url: str | None, data_dir: Path | None, namespace: str) -> Iterator[Store]:
    """The store itself: at `redis_url`, else the embedded store. Arguments and errors as of `open_backend`."""
    if not redis_url:
        _check_there(data_dir or default_data_dir())
    with _store(redis_url, data_dir, namespace) as store:
        yield store


@contextmanager
def _store(redis_url: str | None, data_dir: Path | None, namespace: str) -> Iterator[Store]:
    from serving.store import Store
    from serving.store.embedded import embedded_store

    if redis_url:
        yield Store(redis_url, namespace)
        return
    with embedded_store(data_dir or default_data_dir()) as embedded:
        yield Store(embedded, namespace)


def _check_there(data_dir: Path) -> None:
    from serving.errors import StoreError
    from serving.store.embedded import store_folder

    if not store_folder(data_dir).is_dir():
        raise StoreError(
            f"there is no store in {data_dir}; name a server with --url (KEN_URL), a store with --redis-url "
            "(KEN_REDIS_URL), or the folder of another embedded store with --data-dir (KEN_DATA_DIR). `ken publish` "
            "and `ken serve` make an embedded store"
        )
