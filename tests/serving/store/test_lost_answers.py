"""Changes whose answers are lost on the way: the client sends them again, and they are made once."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from serving.routing.routes import Route
from serving.store import Store
from tests.tiny_checkpoints import Deltas


class Losing(socketserver.ThreadingTCPServer):
    """Passes everything on between a client and a store, and ends the connection in place of the next change's answer
    once it is told to."""

    daemon_threads = True

    def __init__(self, socket_path: str) -> None:
        self.path = socket_path
        self.lose = threading.Event()
        self.lost = 0
        super().__init__(("127.0.0.1", 0), Between)


class Between(socketserver.BaseRequestHandler):
    server: Losing

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as store:
            store.connect(self.server.path)
            asked = threading.Event()
            answers = threading.Thread(target=self.pass_answers, args=(store, asked), daemon=True)
            answers.start()
            while data := self.request.recv(1 << 16):
                if self.server.lose.is_set() and b":history:" in data:
                    asked.set()
                store.sendall(data)
            store.shutdown(socket.SHUT_RDWR)
            answers.join()

    def pass_answers(self, store: socket.socket, asked: threading.Event) -> None:
        while data := store.recv(1 << 16):
            if asked.is_set():
                self.server.lose.clear()
                self.server.lost += 1
                self.request.shutdown(socket.SHUT_RDWR)
                return
            self.request.sendall(data)


@pytest.fixture
def losing(private_url: str) -> Iterator[Losing]:
    with Losing(private_url.removeprefix("unix://")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def direct(private_url: str, deltas: Deltas) -> Store:
    """A store with a task of three versions, whose alias `live` and whose route were changed twice."""
    store = Store(private_url)
    for file in (deltas.spam, deltas.spam_2, deltas.spam_3):
        store.tasks.publish("spam", file)
    for share in (10, 20):
        store.tasks.set_route("spam", Route({"live": 100 - share, deltas.spam.digest: share}))
    store.keys.put("one", {"name": "ada"})
    return store


@contextmanager
def one_answer_lost(losing: Losing) -> Iterator[Store]:
    store = Store(f"redis://127.0.0.1:{losing.server_address[1]}")
    for script in store.connection._scripts.values():  # where one has to be loaded first, nothing is changed yet
        store.connection.client.script_load(script.script)
    losing.lose.set()
    yield store
    assert losing.lost == 1
    store.connection.close()


CHANGES: dict[str, Callable[[Store, Deltas], int]] = {
    "publish": lambda store, deltas: store.tasks.publish("topic", deltas.topic),
    "promote": lambda store, deltas: store.tasks.promote("spam", deltas.spam.digest),
    "rollback": lambda store, _: store.tasks.rollback("spam"),
    "route": lambda store, deltas: store.tasks.set_route("spam", Route({"live": 50, deltas.spam_2.digest: 50})),
    "rollback-route": lambda store, _: store.tasks.rollback_route("spam"),
    "delete-version": lambda store, deltas: store.tasks.delete_version("spam", deltas.spam_2.digest),
    "delete": lambda store, _: store.tasks.delete("spam", force=True),
    "put-key": lambda store, _: store.keys.put("two", {"name": "bob"}),
    "drop-key": lambda store, _: store.keys.drop("one"),
    "adopt": lambda store, _: store.adoptions.add(keeps="another"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_whose_answer_was_lost_is_made_once(
    change: str, losing: Losing, direct: Store, deltas: Deltas
) -> None:
    before = direct.tasks.table()
    with one_answer_lost(losing) as store:
        assert CHANGES[change](store, deltas) == before.revision + 1
    after = direct.tasks.table()
    assert after.revision == before.revision + 1
    assert len(after.lineage.marks) == len(before.lineage.marks) + 1
    if change == "rollback":
        assert after.tasks["spam"].aliases["live"] == deltas.spam_2.digest
    if change == "rollback-route":
        assert after.tasks["spam"].route == Route({"live": 90, deltas.spam.digest: 10})


def test_two_changes_alike_are_both_made(losing: Losing, direct: Store, deltas: Deltas) -> None:
    with one_answer_lost(losing) as store:
        store.tasks.rollback("spam")
        store.tasks.rollback("spam")
    assert direct.tasks.table().tasks["spam"].aliases["live"] == deltas.spam.digest
