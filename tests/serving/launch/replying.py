"""Servers that say which one they are, in place of replicas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread


class _Meeting:
    """Requests that are answered once so many of them are there, at whichever of the servers."""

    def __init__(self) -> None:
        self._changed, self._there = Condition(), 0

    def wait_for(self, number: int) -> None:
        with self._changed:
            self._there += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._there >= number, 50)


@contextmanager
def replying(names: list[str]) -> Iterator[dict[str, ThreadingHTTPServer]]:
    """A server for each name, on free ports. Each answers with its name, once ``X-Together`` requests are there."""
    meeting = _Meeting()
    with ExitStack() as stack:
        yield {name: stack.enter_context(_one(name, meeting)) for name in names}


@contextmanager
def _one(name: str, meeting: _Meeting) -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if number := int(self.headers.get("X-Together", 0)):
                meeting.wait_for(number)
            self.send_response(200)
            self.send_header("Content-Length", str(len(name)))
            self.end_headers()
            self.wfile.write(name.encode())

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
