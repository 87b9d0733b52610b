"""``ken serve`` whose application is deployed as KubeRay deploys it: from the ``serveConfigV2`` of the RayService.

It lies in ``manifest.json`` in the data directory, and is deployed again when this file changes. Once Serve runs all of
it, ``deployed.json`` is a copy of it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from serving.cli import main
from serving.config import Settings
from serving.launch import cluster

ROOT = Path(__file__).resolve().parents[2]


def serve_config() -> dict[str, Any]:
    """The ``serveConfigV2`` that is under deploy/."""
    service = yaml.safe_load((ROOT / "deploy/kubernetes/rayservice.yaml").read_text())
    found: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return found


def deploy(manifest: Path) -> str:
    from ray.serve._private.api import _get_global_client  # what the dashboard calls for KubeRay's operator
    from ray.serve.schema import ServeDeploySchema

    text = manifest.read_text()
    config = ServeDeploySchema.model_validate(json.loads(text))
    _get_global_client().deploy_apps(config, _blocking=True)
    manifest.with_name("deployed.json").write_text(text)
    return text


def follow(manifest: Path, deployed: str) -> None:
    while True:
        time.sleep(0.05)
        if manifest.read_text() != deployed:
            deployed = deploy(manifest)


def start_application(settings: Settings, where: dict[str, Any]) -> None:
    from ray import serve

    serve.start(proxy_location="HeadOnly", http_options=where)
    manifest = settings.data_dir / "manifest.json"
    deployed = deploy(manifest)
    threading.Thread(target=follow, args=(manifest, deployed), daemon=True).start()


if __name__ == "__main__":
    cluster.start_application = start_application
    main(sys.argv[1:])
