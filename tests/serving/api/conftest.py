"""Language models behind HTTP, for the clients of all protocols that have them write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from language_models_served import answering
from over_http import Served

from ken_core import DeltaFile
from tests.tiny_language_tasks import LanguageTasks

RAISING = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system message is taken') }}{% endif %}{{ message['content'] }} {% endfor %}"
)


@pytest.fixture(scope="session")
def language_tasks(tmp_path_factory: pytest.TempPathFactory) -> LanguageTasks:
    return LanguageTasks(tmp_path_factory.mktemp("language-tasks"))


@pytest.fixture(scope="session")
def language_deltas(language_tasks: LanguageTasks) -> dict[str, DeltaFile]:
    """Two language models, one whose chat template takes no system message, and a classifier."""
    return {
        "poems": language_tasks.language_model("poems", 1),
        "news": language_tasks.language_model("news", 2),
        "strict": language_tasks.language_model("strict", 3, template=RAISING),
        "spam": language_tasks.classifier("spam", 4),
    }


@pytest.fixture(scope="module")
def writers(
    language_tasks: LanguageTasks,
    language_deltas: dict[str, DeltaFile],
    embedded_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """A replica that all tests of a module ask."""
    with answering(language_tasks, language_deltas, embedded_url, tmp_path_factory.mktemp("writers")) as found:
        yield found


@pytest.fixture
def lone_writer(
    language_tasks: LanguageTasks, language_deltas: dict[str, DeltaFile], embedded_url: str, tmp_path: Path
) -> Iterator[Served]:
    """A replica of this test's own, to stop or hold up."""
    with answering(language_tasks, language_deltas, embedded_url, tmp_path / "lone") as found:
        yield found
