"""A HAProxy in front of three servers that say their names, as Ray's file has them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from serving.launch.haproxy_file import Frontend
from serving.launch.haproxy_start import variables
from serving.launch.ports import free_port
from tests.serving.launch.haproxying import patient, started
from tests.serving.launch.replying import replying

NAMES = ["one", "two", "three"]
IDS = {name: f"id{name}" for name in NAMES}


def with_servers(text: str, ports: dict[str, int]) -> str:
    lines = [
        f"    server SERVE_REPLICA__ken-Replica-{IDS[n]} 127.0.0.1:{port} check inter 200ms fall 1"
        for n, port in ports.items()
    ]
    return re.sub(r"    server replica .*", "\n".join(lines), text)


class Proxied:
    """A HAProxy in front of three servers. `rays` is its file as Ray wrote it."""

    def __init__(self, file: Path, port: int, rays: str) -> None:
        self.file, self.rays = file, rays
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self.port = port

    def asked(self, path: str, body: object = None, **headers: str) -> str:
        """Which server answers."""
        answer = self.client.post(path, content=json.dumps(body or {}), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.text


@contextmanager
def proxied_by(file: Path, binary: str, more: Mapping[str, str]) -> Iterator[Proxied]:
    """A HAProxy that is started with more variables in its environment."""
    with ExitStack() as stack:
        servers = stack.enter_context(replying(NAMES))
        ports = {name: server.server_port for name, server in servers.items()}
        patient(file)
        rays = with_servers(file.read_text(), ports)
        file.write_text(rays)
        port = free_port()
        values = variables(binary, Frontend((f"127.0.0.1:{port}",))) | more
        stack.enter_context(started(file, values))
        found = Proxied(file, port, rays)
        stack.enter_context(found.client)
        yield found
