"""A real HAProxy, started as Ray starts it, with a short form of Ray's file."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from serving.launch.haproxy_start import ENTRY

ROOT = Path(__file__).resolve().parents[3]
FILE = """\
global
    log 127.0.0.1:514 local0 info
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
    maxconn 200
    tune.bufsize 65536
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 1s
    option httplog
    option splice-request
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend prometheus
    bind :{ports[0]}
frontend http_frontend
    bind 0.0.0.0:{ports[1]}
    http-request return status 200 content-type text/plain string "up" if {{ path /-/healthz }}
    use_backend http-ken if {{ path_beg / }} !{{ path /-/nothing }}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "not found"
backend http-ken
    http-reuse always
    retries 0
    server replica 127.0.0.1:{ports[3]}
listen stats
    bind *:{ports[2]}
"""
"""Ray's file, without the lines that do not matter here. `test_haproxy_file` has the whole file."""


def patient(file: Path) -> None:
    """Let servers take longer than the second after which HAProxy answers 504."""
    file.write_text(file.read_text().replace("timeout server 1s", "timeout server 60s"))


def environment(values: dict[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KEN_", "RAY_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **values}


def _answers(admin: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        try:
            client.connect(str(admin))
            client.sendall(b"show info\n")
            return bool(client.recv(1))
        except (FileNotFoundError, ConnectionError):
            return False


@contextmanager
def started(file: Path, values: dict[str, str]) -> Iterator[psutil.Popen]:
    """Wait until HAProxy answers on its admin socket, as Ray does: then it listens on all its addresses."""
    process = psutil.Popen(
        [ENTRY, "-db", "-f", file, "-dR"], env=environment(values), stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while not _answers(file.parent / "admin.sock"):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
