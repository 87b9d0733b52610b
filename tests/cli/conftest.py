"""One data directory, and so one embedded store, for the commands of a module; and a server on this store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import ADMIN, Ken, run
from tests.serving.listening import listening


@pytest.fixture(scope="module")
def ken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ken]:
    """Runs `ken` in this process (importing torch once), on one data directory and so on one embedded store."""
    from serving.store.embedded import embedded_store

    data_dir = tmp_path_factory.mktemp("cli")

    with pytest.MonkeyPatch.context() as patch, embedded_store(data_dir):
        for name in [k for k in os.environ if k.startswith("KEN_")]:
            patch.delenv(name)
        patch.setenv("KEN_DATA_DIR", str(data_dir))
        patch.setenv("COLUMNS", "200")
        yield run


@pytest.fixture(scope="module")
def url(ken: Ken, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on the commands' own store; it needs a key."""
    from serving.api import create_app
    from serving.config import load_settings
    from serving.service import Service
    from serving.store.embedded import embedded_store

    settings = load_settings(
        base=str(tiny_base), data_dir=tmp_path_factory.mktemp("server"), threads=1, auth="on", admin_token=ADMIN
    )
    with embedded_store(Path(os.environ["KEN_DATA_DIR"])) as store_url:
        service = Service(settings, store_url)
        service.start()
        with listening(create_app(service)) as found:
            yield found
        service.stop()
