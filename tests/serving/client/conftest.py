"""Language models for the clients to stream from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from language_models_served import answering
from over_http import Served

from tests.tiny_language_tasks import LanguageTasks


@pytest.fixture(scope="session")
def language_tasks(tmp_path_factory: pytest.TempPathFactory) -> LanguageTasks:
    return LanguageTasks(tmp_path_factory.mktemp("language-tasks"))


@pytest.fixture
def writers(language_tasks: LanguageTasks, embedded_url: str, tmp_path: Path) -> Iterator[Served]:
    """A replica with the tasks poems and news."""
    tasks = {name: language_tasks.language_model(name, seed) for name, seed in (("poems", 1), ("news", 2))}
    with answering(language_tasks, tasks, embedded_url, tmp_path / "writers") as found:
        yield found
