"""A way to the store that can be cut for one process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import psutil


class Forwarder:
    """Passes connections on from a TCP port to the store's Unix socket, but for those of processes that are cut off."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[tuple[int | None, socket.socket, socket.socket]] = []
        self._cut: set[int] = set()
        self._lock = threading.Lock()
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_off(self, process: int) -> None:
        with self._lock:
            self._cut.add(process)
            for pid, *ends in self._open:
                if pid == process:
                    for end in ends:
                        with suppress(OSError):
                            end.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        with self._lock:
            self._cut.clear()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, peer = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client, peer[1]), daemon=True).start()

    def _serve(self, client: socket.socket, port: int) -> None:
        pid = _owner(port)
        with closing(client), socket.socket(socket.AF_UNIX) as store:
            with self._lock:
                if pid in self._cut:
                    return
                store.connect(self._path)
                self._open.append((pid, client, store))
            back = threading.Thread(target=_pass_on, args=(store, client), daemon=True)
            back.start()
            _pass_on(client, store)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while some := source.recv(1 << 16):
            target.sendall(some)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _owner(port: int) -> int | None:
    """The process that has a port of this machine."""
    for connection in psutil.net_connections("tcp4"):
        if connection.laddr and connection.laddr.port == port and connection.pid:
            return connection.pid
    return None


@contextmanager
def forwarding(url: str) -> Iterator[Forwarder]:
    """A forwarder to an embedded store."""
    found = Forwarder(url.removeprefix("unix://").partition("?")[0])
    try:
        yield found
    finally:
        found.close()
