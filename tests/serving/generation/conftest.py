"""A tiny causal language model, fine-tunes of it, and services that generate."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from querying import publish_to
from writing import Written, fine_tune_of

from serving.config import load_settings
from serving.service import Service
from tests.tiny_language_tasks import LanguageTasks


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> LanguageTasks:
    return LanguageTasks(tmp_path_factory.mktemp("language-models"))


@pytest.fixture(scope="session")
def tasks(models: LanguageTasks) -> dict[str, Written]:
    return {name: fine_tune_of(models.base, models.folder / name) for name in ("poet", "clerk", "child", "judge")}


@pytest.fixture
def make_generating(
    make_service: Callable[..., Service],
    publish: Callable[..., None],
    models: LanguageTasks,
    tasks: dict[str, Written],
) -> Callable[..., Service]:
    """Start a service of the tiny language model, with the tasks poet, clerk, child and judge."""

    def make(**settings: Any) -> Service:
        for name, written in tasks.items():
            publish(name, written.file)
        return make_service(base=str(models.path), **settings)

    return make


@pytest.fixture(scope="module")
def generating(
    models: LanguageTasks,
    tasks: dict[str, Written],
    embedded_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """The same, one for all tests of a file."""
    folder, namespace = tmp_path_factory.mktemp("generating"), f"generating-{uuid.uuid4().hex[:12]}"
    service = Service(
        load_settings(base=str(models.path), data_dir=folder, namespace=namespace, threads=1), embedded_url
    )
    service.start()
    for name, written in tasks.items():
        publish_to(service, name, written.file)
    yield service
    service.stop()
