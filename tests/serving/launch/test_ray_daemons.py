"""Which of Ray's own processes have ended."""

from __future__ import annotations

import shutil
import subprocess
import sys
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are adopted on Linux only")
def test_an_adopted_process_that_has_ended_is_forgotten_and_children_are_left_to_their_owner() -> None:
    """In a process of its own: this one would keep adopting."""
    script = """
import subprocess, psutil
from serving.launch.process_ties import adopt_orphans
from serving.launch.ray_daemons import Daemons
adopt_orphans()
own = subprocess.Popen(["sh", "-c", "exit 7"])
daemons = Daemons()
subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"])
while [p for p in psutil.Process().children() if p.pid != own.pid]:
    daemons.ended()
    if psutil.pid_exists(own.pid) and psutil.Process(own.pid).status() == "zombie":
        print(own.wait())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("7\n", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are adopted on Linux only")
def test_orphans_are_reaped_although_a_process_of_others_has_ended_before_that_nobody_waits_for() -> None:
    script = """
import os, subprocess, time, psutil
from serving.launch.process_ties import adopt_orphans, reap_orphans
adopt_orphans()
own = subprocess.Popen(["true"])
os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
subprocess.run(["sh", "-c", "sleep 0.1 & sleep 9 & exit 0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while len(psutil.Process().children()) > 2:
    reap_orphans({own.pid})
print([process.status() for process in psutil.Process().children()], own.wait())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert ended.stdout == "['zombie', 'sleeping'] 0\n", ended.stderr
