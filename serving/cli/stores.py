"""Which store a command works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.config import default_data_dir

if TYPE_CHECKING:
    from serving.store import Store

RedisUrl = Annotated[str | None, typer.Option(envvar="KEN_REDIS_URL", help="the store; none: the embedded one")]
DataDir = Annotated[Path | None, typer.Option(envvar="KEN_DATA_DIR", help="folder of the embedded store and caches")]
Namespace = Annotated[str, typer.Option(envvar="KEN_NAMESPACE", help="prefix of all keys in the store")]
Wait = Annotated[float | None, typer.Option(help="seconds to wait until every replica has seen the change")]
TaskName = Annotated[str, typer.Argument(help="the task's name")]


@contextmanager
def open_store(url: str | None, data_dir: Path | None, namespace: str) -> Iterator[Store]:
    """The store at a URL, else the embedded one of a data directory."""
    from serving.store import Store
    from serving.store.embedded import embedded_store

    if url:
        yield Store(url, namespace)
        return
    with embedded_store(data_dir or default_data_dir()) as embedded:
        yield Store(embedded, namespace)
