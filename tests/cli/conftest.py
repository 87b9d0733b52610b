"""One data directory, and so one embedded store, for the commands of a module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cli.running import Ken, run


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
