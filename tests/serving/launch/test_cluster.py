"""What a private cluster is given: threads for each replica, and a token."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serving.config import load_settings
from serving.launch.cluster import _new_token, _with_threads
from serving.launch.ports import free_port
from serving.launch.ray_messages import reason_of


@pytest.mark.parametrize(
    ("asked", "replicas", "cores", "threads"), [(0, 1, 8, 8), (0, 3, 8, 2), (0, 4, 2, 1), (5, 3, 8, 5)]
)
def test_replicas_of_one_machine_share_its_cores_unless_told(
    asked: int, replicas: int, cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.launch.cluster.usable_cores", lambda: cores)
    settings = load_settings(base="minilm", threads=asked, replicas=replicas)
    assert _with_threads(settings).shareable()["threads"] == threads


def test_each_cluster_has_a_token_of_its_own_that_only_its_owner_reads(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    files = [_new_token(folder) for folder in folders]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert len({file.read_text() for file in files}) == 2
    assert all(len(file.read_text()) == 64 for file in files)


STOPPED_WHILE_IT_STARTS = """
import os, signal, sys
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from serving.config import load_settings
from serving.launch import cluster
from serving.launch.stop_signals import StoppedError

def start_application(*_):
    with suppress(StoppedError):  # as code of Ray's that catches everything
        os.kill(os.getpid(), signal.SIGTERM)
    raise RuntimeError("interrupted")

cluster._start_cluster = cluster.end_cluster = lambda *_: None
cluster.Daemons = lambda: SimpleNamespace(needed=nullcontext)
cluster.start_application = start_application
cluster.replicas_run = lambda: True
cluster.drain = lambda settings, say: say("drained") or 0
sys.exit(cluster.run_cluster(load_settings(base="b"), None, "redis://none", Path(sys.argv[1]), print))
"""


def test_replicas_are_drained_too_where_a_signal_during_the_start_ends_in_another_error(tmp_path: Path) -> None:
    """In a process of its own, whose environment and signal handlers change."""
    command = [sys.executable, "-c", STOPPED_WHILE_IT_STARTS, tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "drained\n"), ended.stderr


def test_an_address_that_haproxy_cannot_have_is_named() -> None:
    """As Ray raises it, from what HAProxy 2.8 writes."""
    message = """Traceback
RuntimeError: HAProxy crashed during startup: [NOTICE]   (16981) : haproxy version is 2.8.25-5cf5d0683
[ALERT]    (16981) : Binding [/h/haproxy.cfg:52] for frontend http_frontend: cannot bind socket (Address already in \
use) for [127.0.0.1:23456]
[ALERT]    (16981) : [/bin/haproxy.main()] Some protocols failed to start their listeners! Exiting."""
    told = reason_of(RuntimeError(message))
    assert told.startswith("HAProxy cannot listen on 127.0.0.1:23456 (Address already in use);")


def test_ports_are_none_that_the_kernel_gives_to_others_nor_those_of_a_process_that_was_seeded_alike() -> None:
    found = []
    for _ in range(2):
        random.seed(42)
        found.append(free_port())
    assert found[0] != found[1]
    assert all(port < 32_768 for port in found)
    with socket.create_server(("127.0.0.1", found[0])):
        pass
