"""Real servers on a free port of this machine: an ASGI application, and one that answers from a script."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import uvicorn


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The application's URL while it is served."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run, name="listening")
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@dataclass(frozen=True)
class Say:
    """One answer of a `Scripted` server."""

    status: int = 200
    body: bytes = b"[]"
    headers: Mapping[str, str] = field(default_factory=dict)


CUT = Say(0)
"""Read the request, and close the connection."""


@dataclass(frozen=True)
class Heard:
    """One request that a `Scripted` server got."""

    line: str
    headers: Mapping[str, str]
    body: bytes


class Scripted:
    """A server that gives prepared answers in order, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Say) -> None:
        self._answers = list(answers)
        self.heard: list[Heard] = []

    @property
    def lines(self) -> list[str]:
        """Method and path of each request."""
        return [heard.line for heard in self.heard]

    def __enter__(self) -> Self:
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                scripted.heard.append(Heard(f"{self.command} {self.path}", dict(self.headers), body))
                said = scripted._answers.pop(0) if len(scripted._answers) > 1 else scripted._answers[0]
                if said is CUT:
                    self.close_connection = True
                    return
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(said.body)))
                self.end_headers()
                self.wfile.write(said.body)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), name="scripted", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
