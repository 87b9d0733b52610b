"""The files under deploy/, parsed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.charts import LOADER

ROOT = Path(__file__).resolve().parents[2]
Object = dict[str, Any]


@pytest.fixture
def deploy() -> Path:
    return ROOT / "deploy"


@pytest.fixture
def ray_service(deploy: Path) -> Object:
    return yaml.load((deploy / "kubernetes/rayservice.yaml").read_text(), LOADER)


@pytest.fixture
def serve_config(ray_service: Object) -> Object:
    return yaml.load(ray_service["spec"]["serveConfigV2"], LOADER)


@pytest.fixture
def head(ray_service: Object) -> Object:
    """The head's pod template."""
    return ray_service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]


@pytest.fixture
def worker(ray_service: Object) -> Object:
    """The workers' pod template."""
    (group,) = ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return group["template"]


@pytest.fixture
def compose(deploy: Path) -> Object:
    return yaml.safe_load((deploy / "compose/compose.yaml").read_text())


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KEN_")]:
        monkeypatch.delenv(name)
