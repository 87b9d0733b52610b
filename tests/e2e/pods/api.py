"""The calls of the Kubernetes API that Ray's autoscaler makes, over TLS and with a token."""

from __future__ import annotations

import hmac
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tests.e2e.pods.manifest import CLUSTER, NAMESPACE

Object = dict[str, Any]


class Objects(Protocol):
    """What the calls are about."""

    def ray_cluster(self) -> Object: ...

    def change(self, operations: list[Object]) -> Object:
        """Apply a JSON patch (RFC 6902) to the RayCluster, and return it."""

    def pods(self) -> list[Object]: ...


@contextmanager
def served(objects: Objects, address: str, certificate: tuple[Path, Path], token: str) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_PATCH(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, operations: list[Object] | None) -> None:
            if not hmac.compare_digest(self.headers.get("Authorization", ""), f"Bearer {token}"):
                return self._send(HTTPStatus.UNAUTHORIZED, {"message": "found no valid token"})
            path = urlsplit(self.path).path
            if path == f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/{CLUSTER}":
                return self._send(
                    HTTPStatus.OK, objects.ray_cluster() if not operations else objects.change(operations)
                )
            if path.startswith(f"/api/v1/namespaces/{NAMESPACE}/pods"):
                return self._pods(path.rpartition("/pods")[2].lstrip("/"))
            return self._send(HTTPStatus.NOT_FOUND, {"message": f"nothing at {path}"})

        def _pods(self, name: str) -> None:
            found = objects.pods()
            if not name:
                return self._send(HTTPStatus.OK, {"metadata": {"resourceVersion": "1"}, "items": found})
            of_name = [pod for pod in found if pod["metadata"]["name"] == name]
            return self._send(HTTPStatus.OK if of_name else HTTPStatus.NOT_FOUND, of_name[0] if of_name else {})

        def _send(self, status: HTTPStatus, body: Object) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: every call would be a line."""

    server = ThreadingHTTPServer((address, 443), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
