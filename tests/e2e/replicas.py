"""Replicas of a server that runs `from_manifest`: how many there shall be, and which there are."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil

from serving.launch.server_process import ServerProcess
from tests.e2e.running import processes_of


def on_this_machine(config: dict[str, Any], settings: dict[str, str]) -> dict[str, Any]:
    """The manifest's configuration with folders, ports and the namespace of the test."""
    (application,) = config["applications"]
    del config["http_options"]
    own = {"base": settings["base"], "data_dir": settings["data_dir"], "host": "127.0.0.1"}
    application["args"] |= own | {"metrics_port": 0, "namespace": settings["namespace"], "threads": 1}
    return config


def deploy(config: dict[str, Any], count: int, folder: Path) -> None:
    """Change the number of replicas where the manifest has it."""
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    deployment["autoscaling_config"] |= {"min_replicas": count, "max_replicas": count}
    write(config, folder)


def update(config: dict[str, Any], folder: Path) -> None:
    """Change a setting, so that Serve replaces every replica."""
    (application,) = config["applications"]
    application["args"]["max_merges"] = 7
    write(config, folder)


def write(config: dict[str, Any], folder: Path) -> None:
    new = folder / "manifest.new"
    new.write_text(json.dumps(config))
    os.replace(new, folder / "manifest.json")


def replicas(server: ServerProcess) -> set[int]:
    """The process ids of the replicas."""
    found = set()
    for process in processes_of(server):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ServeReplica:ken"):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def await_replicas(server: ServerProcess, count: int) -> set[int]:
    """Wait until so many replicas run. Returns their process ids."""
    deadline = time.monotonic() + 120
    while len(found := replicas(server)) != count:
        assert time.monotonic() < deadline, f"{len(found)} replicas run"
        time.sleep(0.1)
    return found


def running_at_once(server: ServerProcess, old: set[int]) -> set[int]:
    """The most replicas that ran at once until all old ones were replaced."""
    deadline = time.monotonic() + 120
    most: set[int] = set()
    while (now := replicas(server)) & old or len(now) != len(old):
        assert time.monotonic() < deadline, "old replicas run on"
        most = max(most, now, key=len)
        time.sleep(0.1)
    return most


def await_deployed(folder: Path) -> None:
    """Wait until Serve runs what was deployed last, and nothing else."""
    manifest, deployed = folder / "manifest.json", folder / "deployed.json"
    deadline = time.monotonic() + 120
    while not deployed.exists() or deployed.read_text() != manifest.read_text():
        assert time.monotonic() < deadline, "what was deployed does not run"
        time.sleep(0.1)
