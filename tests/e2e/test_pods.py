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
"""Seconds after which a request to a node that is cut off has ended: the manifest's HAProxy timeout, and some."""


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


@pytest.mark.timeout(1800)
def test_pods_are_scaled_killed_cut_off_updated_and_no_request_fails(
    minilm: Path, published: list[PublishedTask], later: PublishedTask, tmp_path: Path
) -> None:
    reason = cannot_run()
    if reason is not None:
        pytest.skip(reason)
    deltas = [str(task.file) for task in (*published, later)]
    own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [sys.executable, "-m", "tests.e2e.pods.drive", str(minilm), str(tmp_path / "pods"), *deltas]
    done = subprocess.run([*own, *command], cwd=ROOT, check=False)
    assert done.returncode == 0
    for part in json.loads((tmp_path / "pods/report.json").read_text()):
        assert part["answers"] > 0, part
        if part["name"] == "a node cut off":
            assert part["slowest"] < BOUND
            assert not [f for f in part["failures"] if f["what"].startswith("answered by")]
        else:
            assert part["failures"] == [], part["name"]
