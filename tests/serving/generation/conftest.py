"""A tiny causal language model, fine-tunes of it, and services that generate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from writing import LanguageModels, Written

from serving.service import Service


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> LanguageModels:
    return LanguageModels(tmp_path_factory.mktemp("language-models"))


@pytest.fixture(scope="session")
def tasks(models: LanguageModels) -> dict[str, Written]:
    return {name: models.fine_tune(name) for name in ("poet", "clerk", "child", "judge")}


@pytest.fixture
def make_generating(
    make_service: Callable[..., Service],
    publish: Callable[..., None],
    models: LanguageModels,
    tasks: dict[str, Written],
) -> Callable[..., Service]:
    """Start a service of the tiny language model, with the tasks poet, clerk, child and judge."""

    def make(**settings: Any) -> Service:
        for name, written in tasks.items():
            publish(name, written.file)
        return make_service(base=str(models.base), **settings)

    return make


@pytest.fixture
def generating(make_generating: Callable[..., Service]) -> Service:
    return make_generating()
