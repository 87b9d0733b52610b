"""Which of Ray's own processes have ended."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.launch.ray_daemons import Daemons


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the name of a daemon."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, tmp_path / "raylet")
    with subprocess.Popen([tmp_path / "raylet", "60"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("reaped", [False, True])
def test_a_daemon_that_was_killed_is_named_whether_it_was_reaped_or_not(
    raylet: subprocess.Popen[bytes], reaped: bool
) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        daemons = Daemons()
        assert daemons.ended() is None
        other.kill()
        assert daemons.ended() is None
        raylet.kill()
        if reaped:
            raylet.wait()
        while daemons.ended() is None:
            pass
        assert daemons.ended() == "raylet"
