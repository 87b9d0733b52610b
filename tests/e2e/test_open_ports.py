"""A running server opens no port to other machines, and to this one none through which others could run code."""

from __future__ import annotations

import resource
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from serving.config import Settings
from serving.launch.haproxy_binary import find_haproxy
from serving.launch.server_process import ServerProcess
from tests.e2e.listening import listening, reachable
from tests.e2e.running import processes_of

pytestmark = pytest.mark.e2e
JOBS = ("/api/job_agent/jobs/", "/api/jobs/")
"""Paths of Ray's node agent and of Ray's dashboard. Both run a command line that is sent to them."""


def settle() -> None:
    """Wait a moment: Ray replaces the process of HAProxy when it adds replicas, and for a moment there is none."""
    time.sleep(1)


def token_file(server: ServerProcess) -> Path:
    """The file with the token of a server's cluster."""
    for process in processes_of(server):
        with suppress(psutil.Error):
            if path := process.environ().get("RAY_AUTH_TOKEN_PATH"):
                return Path(path)
    raise AssertionError("no process has RAY_AUTH_TOKEN_PATH")


def test_no_other_machine_reaches_any_socket(server: ServerProcess) -> None:
    settle()
    assert len(listening(server)) > 10
    assert reachable(server) == {}


def test_without_the_token_nobody_submits_a_job(server: ServerProcess, tmp_path: Path) -> None:
    ports = {one.port for one in listening(server)}
    accepted, refused = {}, set()
    for port in ports:
        for path in JOBS:
            job = {"entrypoint": f"touch {tmp_path / 'without'}"}
            with suppress(httpx.TransportError):
                answer = httpx.post(f"http://127.0.0.1:{port}{path}", json=job, timeout=10)
                if answer.status_code < 400:
                    accepted[port, path] = answer.text
                elif answer.status_code == 401:
                    refused.add((port, path))
    assert accepted == {}

    # the same request with the token runs: so the requests refused above were valid, and they have had time to run
    job = {"entrypoint": f"touch {tmp_path / 'with'}"}
    headers = {"Authorization": f"Bearer {token_file(server).read_text()}"}
    asked = (
        httpx.post(f"http://127.0.0.1:{port}{path}", json=job, headers=headers, timeout=30) for port, path in refused
    )
    if 200 not in [answer.status_code for answer in asked]:
        pytest.skip("another Ray on this machine holds the port of the agent")
    deadline = time.monotonic() + 60
    while not (tmp_path / "with").exists():
        assert time.monotonic() < deadline, "the job with the token did not run"
        time.sleep(0.1)
    assert not (tmp_path / "without").exists()


def test_the_private_folder_and_what_lies_in_it_are_for_the_owner_alone(server: ServerProcess) -> None:
    token = token_file(server)
    for path, mode in ((token.parent, 0o700), (token, 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
        assert path.stat().st_uid == psutil.Process(server.process.pid).uids().real
    sockets = [path for path in token.parent.rglob("*") if path.is_socket()]
    assert {"plasma_store", "raylet"} <= {path.name for path in sockets}
    if find_haproxy():
        (admin,) = (path for path in sockets if path.name == "admin.sock")
        assert stat.S_IMODE(admin.stat().st_mode) == 0o600


@contextmanager
def files_allowed(count: int) -> Iterator[None]:
    """Raise the limit of open files of this process, or skip the test if its user may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this test needs {count} open files, and its user may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_address_cannot_shut_everybody_else_out(server: ServerProcess) -> None:
    if find_haproxy() is None:
        pytest.skip("only HAProxy limits connections: pip install 'ken-serve[haproxy]'")
    connections = Settings.model_fields["max_connections"].default + 100
    with files_allowed(connections + 1000), ExitStack() as held:
        for _ in range(connections):
            with suppress(ConnectionError):  # beyond the limit
                idle = socket.create_connection(("127.0.0.1", server.port), 10, source_address=("127.0.0.2", 0))
                held.enter_context(closing(idle))
        assert httpx.get(f"{server.url}/readyz", timeout=10).status_code == 200
