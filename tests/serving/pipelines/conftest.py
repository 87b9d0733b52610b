"""Fine-tunes of several architectures, each made once a file, to be asked as a server would be."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.tiny_architectures import ArchitectureBase, FineTune

Make = Callable[..., FineTune]


@pytest.fixture(scope="module")
def make_fine_tune_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``make_fine_tune_of(architecture, name, head, labels, **config)``: a fine-tune, made once."""

    @cache
    def base(architecture: str) -> ArchitectureBase:
        return ArchitectureBase(architecture, tmp_path_factory.mktemp(architecture))

    @cache
    def make(architecture: str, name: str, head: str, labels: tuple[str, ...], config: tuple[Any, ...]) -> FineTune:
        return base(architecture).fine_tune(name, head, labels, **dict(config))

    return lambda architecture, name, head, labels=(), **config: make(
        architecture, name, head, tuple(labels), tuple(config.items())
    )


@pytest.fixture(scope="module")
def dedicated_pipeline() -> Callable[..., Any]:
    """``dedicated_pipeline(kind, fine_tune)``: Transformers' own pipeline on the applied folder, made once."""

    @cache
    def make(kind: str, folder: Path, options: tuple[Any, ...]) -> Any:
        return transformers.pipeline(kind, model=str(folder), **dict(options))

    return lambda kind, fine_tune, **options: make(kind, fine_tune.applied, tuple(options.items()))
