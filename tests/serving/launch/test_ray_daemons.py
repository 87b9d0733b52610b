"""Which of Ray's own processes have ended."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.errors import StartError
from serving.launch.ray_daemons import Daemons
from serving.launch.stop_signals import StoppedError

Process = subprocess.Popen[bytes]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Starts processes with the names of daemons."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    with ExitStack() as stack:

        def started(name: str) -> Process:
            shutil.copy(sleep, tmp_path / name)
            process = stack.enter_context(subprocess.Popen([tmp_path / name, "60"]))
            stack.callback(process.kill)
            return process

        yield started


@pytest.fixture
def raylet(start: Callable[[str], Process]) -> Process:
    """A raylet, beside a gcs_server."""
    start("gcs_server")
    return start("raylet")


@pytest.mark.parametrize("reaped", [False, True])
def test_a_daemon_that_was_killed_is_named_whether_it_was_reaped_or_not(raylet: Process, reaped: bool) -> None:
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


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_daemon_that_is_not_there_is_named(name: str, start: Callable[[str], Process]) -> None:
    start("gcs_server" if name == "raylet" else "raylet")
    with pytest.raises(StartError, match=f"found no {name} among"):
        Daemons()


@pytest.mark.parametrize("failure", [None, RuntimeError("lost connection")])
def test_a_block_that_needs_a_daemon_ends_with_the_daemon(failure: Exception | None, raylet: Process) -> None:
    """Whether the block waits without end or fails because of it."""

    def start_something() -> None:
        raylet.kill()
        raylet.wait()
        if failure is not None:
            raise failure
        time.sleep(60)

    with pytest.raises(StartError, match="raylet, a process of Ray's, has ended"), Daemons().needed():
        start_something()


@pytest.mark.parametrize("failure", [StoppedError, RuntimeError])
def test_while_the_daemons_run_failures_of_the_block_are_its_own(failure: type[BaseException], raylet: Process) -> None:
    with pytest.raises(failure), Daemons().needed():
        raise failure
    with Daemons().needed():
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are adopted on Linux only")
def test_an_adopted_process_that_has_ended_is_forgotten_and_children_are_left_to_their_owner(tmp_path: Path) -> None:
    """In a process of its own: this one would keep adopting."""
    script = """
import shutil, subprocess, sys, psutil
from serving.launch.process_ties import adopt_orphans
from serving.launch.ray_daemons import Daemons
adopt_orphans()
folder = sys.argv[1]
for name in ("raylet", "gcs_server"):
    shutil.copy(shutil.which("sleep"), f"{folder}/{name}")
needed = [subprocess.Popen([f"{folder}/{name}", "60"], stdout=subprocess.DEVNULL) for name in ("raylet", "gcs_server")]
own = subprocess.Popen(["sh", "-c", "exit 7"])
daemons = Daemons()
subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"])
kept = {own.pid, *(process.pid for process in needed)}
while [p for p in psutil.Process().children() if p.pid not in kept]:
    daemons.ended()
    if psutil.pid_exists(own.pid) and psutil.Process(own.pid).status() == "zombie":
        print(own.wait())
for process in needed:
    process.kill()
"""
    ended = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("7\n", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="orphans are adopted on Linux only")
def test_orphans_are_reaped_although_a_process_of_others_has_ended_before_that_nobody_waits_for() -> None:
    script = """
import os, subprocess, time, psutil
from serving.launch.process_ties import adopt_orphans, reap_orphans
adopt_orphans()
own = subprocess.Popen(["true"])
os.waitid(os.P_PID, own.pid, os.WEXITED | os.WNOWAIT)
subprocess.run(["sh", "-c", "sleep 0.1 & sleep 60 & exit 0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while len(psutil.Process().children()) > 2:
    reap_orphans({own.pid})
left = psutil.Process().children()
print([process.status() == "zombie" for process in left], own.wait())
left[-1].kill()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert ended.stdout == "[True, False] 0\n", ended.stderr
