"""The deployment of deploy/kubernetes, as pods on a network of their own, and what happens to a deployment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import PublishedTask

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("ip", "unshare", "nsenter", "setpriv", "pgrep")
BOUND = 35 + 5
"""Seconds after which a request that was passed on to a node that is cut off has ended: the manifest's HAProxy timeout,
and some. What went to the node itself only its client can end."""


def cannot_run() -> str | None:
    """Why pods cannot be started here; None if they can."""
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2, util-linux, procps)"
    if os.geteuid() != 0:
        return "needs root, for namespaces and networks"
    own = ["unshare", "--net", "--mount", "ip", "link", "add", "probe", "type", "bridge"]
    made = subprocess.run(own, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"may not make networks here: {made.stderr.strip()}"
    reading = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", sys.executable, "-c", "import ray"]
    read = subprocess.run(reading, capture_output=True, text=True, check=False)
    return None if read.returncode == 0 else f"user 10001 cannot run {sys.executable}: {read.stderr.strip()[-200:]}"


@pytest.fixture(scope="session")
def possible() -> None:
    if (reason := cannot_run()) is not None:
        pytest.skip(reason)


@pytest.mark.usefixtures("possible")
@pytest.mark.timeout(2400)
def test_pods_are_scaled_killed_cut_off_updated_and_no_request_fails(
    minilm: Path, published: list[PublishedTask], later: PublishedTask, tmp_path: Path
) -> None:
    deltas = [str(task.file) for task in (*published, later)]
    command = [sys.executable, "-m", "tests.e2e.pods.drive", str(minilm), str(tmp_path / "pods"), *deltas]
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == 0
    for part in json.loads((tmp_path / "pods/report.json").read_text()):
        assert part["answers"] > 0, part
        passed_on = [f for f in part["failures"] if f["pod"] != part["about"]]
        if part["name"] == "a node cut off":
            assert all(f["what"].startswith("504 ") and f["seconds"] < BOUND for f in passed_on), passed_on
        else:
            assert part["failures"] == [], part["name"]
