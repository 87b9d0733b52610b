"""The program that Ray starts as HAProxy: the real script with a real HAProxy, started as Ray starts it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from fastapi import APIRouter, Response
from fastapi.routing import APIRoute

from serving.admission import Admission
from serving.api import create_app, session
from serving.api.application import MANAGEMENT, PROTOCOLS, protocol_of
from serving.api.auth import Authenticator
from serving.api.changes import AuditedChanges
from serving.api.failures import Failure
from serving.api.predicting import Predictor
from serving.api.resolve import Resolver
from serving.config import Settings
from serving.errors import StartError
from serving.launch import haproxy_start as haproxystart
from serving.launch.haproxy_answers import OWN_ANSWERS
from serving.launch.haproxy_file import Frontend
from serving.launch.haproxy_start import ENTRY, check_startable, variables
from serving.launch.ports import free_port
from serving.tasks import TaskTable
from tests.serving.launch.haproxying import environment, patient, started
from tests.serving.launch.replying import replying


def refused(values: dict[str, str], *arguments: str | Path) -> str:
    """The error message of a HAProxy that does not start."""
    ended = subprocess.run([ENTRY, *arguments], env=environment(values), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_the_process_ray_started_becomes_haproxy_with_the_arguments_it_was_given(file: Path, binary: str) -> None:
    with started(file, variables(binary, Frontend())) as process:
        assert process.exe() == str(Path(binary).resolve())
        assert process.cmdline() == [binary, "-db", "-f", str(file), "-dR"]
        assert (file.parent / "admin.sock").stat().st_mode & 0o777 == 0o600
        assert file.stat().st_mode & 0o777 == 0o600
        heard = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert heard == {"127.0.0.1", "0.0.0.0"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tie a process to its parent")
def test_haproxy_ends_with_the_process_that_started_it(file: Path, binary: str) -> None:
    """Otherwise it would hold its port when its manager is killed."""
    parent = f"import subprocess; subprocess.run({[str(ENTRY), '-db', '-f', str(file), '-dR']})"
    with psutil.Popen([sys.executable, "-c", parent], env=environment(variables(binary, Frontend()))) as started:
        deadline = time.monotonic() + 30
        while not (file.parent / "admin.sock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (haproxy,) = started.children()
        started.kill()
    try:
        assert psutil.wait_procs([haproxy], timeout=10)[1] == []
    finally:
        with suppress(psutil.NoSuchProcess):
            haproxy.kill()


def test_it_starts_with_an_interpreter_far_down_and_ignores_the_working_directory(
    file: Path, binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of Python is longer than a script's first line may be (127) and has a space; the working directory has
    a hostile package."""
    deep = tmp_path / "a long way" / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    (deep / "python").symlink_to(sys.executable)
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving/__init__.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    with started(file, variables(binary, Frontend()) | {"KEN_HAPROXY_PYTHON": str(deep / "python")}) as process:
        assert process.exe() == str(Path(binary).resolve())


def test_without_a_launcher_it_finds_haproxy_and_the_limits_by_itself(file: Path, binary: str) -> None:
    """As in a container of a cluster, where Ray knows the path of the script and nothing else."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    values = {"PATH": path, "RAY_SERVE_HAPROXY_BINARY_PATH": str(ENTRY), "KEN_MAX_CONNECTIONS_PER_SOURCE": "5"}
    with started(file, values) as process:
        assert process.exe() == str(Path(binary).resolve())
        assert "sc0_conn_cur gt 5" in file.read_text()
        assert "maxconn 200" in file.read_text()


def like(answer: httpx.Response) -> Response:
    """The failure that a replica would answer in an answer's place."""
    path = answer.request.url.path
    own = next(own for own in OWN_ANSWERS if own.status == answer.status_code)
    failure = Failure(own.status, own.title, own.detail, None, retry_after=own.retry_after)
    return protocol_of(path).shape(failure)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_haproxy_answers_by_itself_has_the_form_of_the_paths_protocol(
    status: int, file: Path, binary: str
) -> None:
    """The replica is not there (503), hangs up without an answer (502), or never answers (504)."""
    port, replica = free_port(), re.search(r"server replica (\S+):(\d+)", file.read_text())
    assert replica is not None
    paths = [path for protocol in PROTOCOLS for path in protocol.paths]
    asked = ["/", "/readyz", "/v1/tasks/news/predict", *paths]
    asked += [f"{path}{more}" for path in paths for more in ("/some?x=1", "?x=1", "x", "ormation/x")]
    if status == 502:
        patient(file)
    with ExitStack() as stack:
        if status != 503:
            heard = stack.enter_context(socket.create_server((replica[1], int(replica[2]))))
            stack.callback(heard.shutdown, socket.SHUT_RDWR)
            Thread(target=take, args=(heard, status == 502), daemon=True).start()
        stack.enter_context(started(file, variables(binary, Frontend((f"127.0.0.1:{port}",)))))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20))
        answers = stack.enter_context(ThreadPoolExecutor(8)).map(client.get, asked)
        for answer in answers:
            expected = like(answer)
            assert answer.status_code == status
            assert answer.json() == json.loads(expected.body)
            assert answer.headers["content-type"] == expected.headers["content-type"]
            assert answer.headers.get("retry-after") == expected.headers.get("retry-after")


@pytest.mark.parametrize("target", ["*", "somewhere", "?x", "http://127.0.0.1:{port}"])
def test_a_target_without_a_path_is_answered_in_the_native_form(target: str, file: Path, binary: str) -> None:
    port = free_port()
    with (
        started(file, variables(binary, Frontend((f"127.0.0.1:{port}",)))),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        answer = client.options("/", extensions={"target": target.format(port=port).encode()})
        assert (answer.status_code, answer.json()) == (503, json.loads(like(answer).body))


def take(heard: socket.socket, hang_up: bool) -> None:
    """Take connections and answer nothing."""
    held = []
    with suppress(OSError):
        while True:
            taken, _ = heard.accept()
            held.append(taken)
            if hang_up:
                taken.recv(65536)
                taken.close()


def test_a_path_without_an_application_is_unavailable_and_not_unknown(file: Path, binary: str) -> None:
    port = free_port()
    with started(file, variables(binary, Frontend((f"127.0.0.1:{port}",)))):
        answer = httpx.get(f"http://127.0.0.1:{port}/-/nothing")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json() == json.loads(like(answer).body)


def test_a_change_may_take_longer_than_a_prediction(file: Path, binary: str) -> None:
    port, replica = free_port(), re.search(r"server replica (\S+):(\d+)", file.read_text())
    assert replica is not None
    with (
        socket.create_server((replica[1], int(replica[2]))) as heard,
        started(file, variables(binary, Frontend((f"127.0.0.1:{port}",)))),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=3) as client,
    ):
        Thread(target=take, args=(heard, False), daemon=True).start()
        assert client.post("/v1/tasks/news/predict", timeout=20).status_code == 504
        assert client.get("/v1/tasks/news", timeout=20).status_code == 504
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/tasks/news?wait=60")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        pytest.param("/v1/completions", marks=pytest.mark.slow),
        "/v1/tasks/news/generate",
        pytest.param("/models/a", marks=pytest.mark.slow),
        pytest.param("/models/a/v1/chat/completions", marks=pytest.mark.slow),
    ],
)
def test_a_text_may_take_longer_than_a_prediction(path: str, file: Path, binary: str) -> None:
    port, replica = free_port(), re.search(r"server replica (\S+):(\d+)", file.read_text())
    assert replica is not None
    told = variables(binary, Frontend((f"127.0.0.1:{port}",)), generation_timeout=20.0)
    with (
        socket.create_server((replica[1], int(replica[2]))) as heard,
        started(file, told),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=2) as client,
    ):
        Thread(target=take, args=(heard, False), daemon=True).start()
        assert "set-timeout server 25s if METH_POST ken_generates" in file.read_text()
        with pytest.raises(httpx.ReadTimeout):
            client.post(path, json={"model": "a"})
        assert client.get(path, timeout=20).status_code == 504


def end_unanswered(heard: socket.socket, reads: bool) -> None:
    """Close every connection without an answer, as a replica that is killed does. What was not read is reset by TCP."""
    with suppress(OSError):
        while True:
            connection, _ = heard.accept()
            if reads:
                connection.recv(65536)
            time.sleep(0.05)
            connection.close()


@pytest.mark.parametrize("reads", [True, False])
def test_a_request_to_a_replica_that_ends_is_repeated_though_its_body_came_after_its_head(
    reads: bool, file: Path, binary: str
) -> None:
    """HAProxy can only repeat what it has whole, so it must wait for the body before it passes on the head."""
    patient(file)
    repeating = "retry-on conn-failure empty-response\n    retries 1\n    option redispatch 1"
    found = re.search(r"server replica (\S+):(\d+)", file.read_text())
    assert found is not None
    port = free_port()
    with ExitStack() as stack:
        heard = stack.enter_context(socket.create_server((found[1], int(found[2]))))
        other = stack.enter_context(replying(["other"]))["other"].server_port
        servers = f"{found[0]} weight 100\n    server other 127.0.0.1:{other} weight 1"
        file.write_text(file.read_text().replace("retries 0", repeating).replace(found[0], servers))
        Thread(target=end_unanswered, args=(heard, reads), daemon=True).start()
        stack.enter_context(started(file, variables(binary, Frontend((f"127.0.0.1:{port}",)))))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        for path in ("/v1/tasks/news/predict", "/v1/predict", "/embed"):
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: ken\r\nContent-Length: 13\r\n\r\n".encode())
            time.sleep(0.1)
            client.sendall(b'{"inputs": 1}')
            assert client.recv(4096).startswith(b"HTTP/1.1 200"), path


def test_a_body_that_does_not_arrive_is_not_waited_for_longer_than_for_an_answer(file: Path, binary: str) -> None:
    port = free_port()
    values = variables(binary, Frontend((f"127.0.0.1:{port}",))) | {"RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "1"}
    with started(file, values), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /v1/tasks/news/predict HTTP/1.1\r\nHost: ken\r\nContent-Length: 13\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 408")


def test_replicas_that_ray_does_not_name_for_a_moment_are_asked_all_the_same(file: Path, binary: str) -> None:
    """The file is written again by Ray, and another process of HAProxy started, as at every change of replicas."""
    patient(file)
    rays = file.read_text()
    found = re.search(r"    server replica .*\n", rays)
    assert found is not None
    with ExitStack() as stack:
        replica = stack.enter_context(replying(["replica"]))["replica"].server_port
        named = f"    server replica 127.0.0.1:{replica} check inter 200ms fall 1\n"
        for text in (rays.replace(found[0], named), rays.replace(found[0], "")):
            file.write_text(text)
            port = free_port()
            with started(file, variables(binary, Frontend((f"127.0.0.1:{port}",)))):
                assert httpx.get(f"http://127.0.0.1:{port}/v1/tasks").text == "replica"
            (file.parent / "admin.sock").unlink()


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("192.0.2.1", 503)])
def test_a_machine_is_healthy_while_a_replica_of_its_own_answers(
    host: str, status: int, file: Path, binary: str
) -> None:
    """Nobody checks the server, so HAProxy takes it for one that answers, on whichever machine it is."""
    asked = "{ path /-/healthz }"
    rays = (
        "    acl backend_http-ken_server_up nbsrv(http-ken) ge 1\n"
        f"    http-request return status 200 if {asked} backend_http-ken_server_up\n"
        f"    http-request return status 503 if {asked}"
    )
    text = re.sub(r"    http-request return status 200 .* if \{ path /-/healthz \}", rays, file.read_text())
    file.write_text(re.sub(r"server replica [^:]+", f"server replica {host}", text))
    port = free_port()
    with started(file, variables(binary, Frontend((f"127.0.0.1:{port}",)))):
        assert httpx.get(f"http://127.0.0.1:{port}/-/healthz").status_code == status


def operations(routers: Iterable[APIRouter]) -> set[tuple[str, str]]:
    """The methods and paths of routes that are in the OpenAPI document, but for those that only read."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {(method, route.path) for route in routes for method in route.methods if method != "GET"}


def test_every_change_has_the_time_of_changes_and_no_prediction_has(file: Path, binary: str, tmp_path: Path) -> None:
    """By the conditions of a real HAProxy, which says what it would do; names are such that they could be mistaken."""
    table = TaskTable(tmp_path / "tasks-default.json")
    parts = {"settings": Settings(base="b"), "store": None, "table": table, "admission": Admission()}
    service: Any = SimpleNamespace(replica="node-0", **parts)
    authenticator = Authenticator(service.settings, table)
    predictor = Predictor(service, Resolver(table, authenticator))
    audited = AuditedChanges(service, authenticator)
    changes = operations(router(service, authenticator, audited) for router in MANAGEMENT)
    predictions = operations(protocol.router(service, predictor) for protocol in PROTOCOLS)
    documented = {
        (method.upper(), path)
        for path, methods in create_app(service).openapi()["paths"].items()
        for method in methods
        if method != "get"
    }
    sessions = operations([session.router(service, authenticator)])
    assert changes | predictions | sessions == documented
    long = 'http-request return status 200 content-type text/plain string "long" if ken_changes !ken_predicts !METH_GET'
    short = 'http-request return status 200 content-type text/plain string "short"'
    file.write_text(file.read_text().replace("    retries 0", f"    {long}\n    {short}\n    retries 0"))
    port = free_port()
    with (
        started(file, variables(binary, Frontend((f"127.0.0.1:{port}",)))),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        for expected, asked in (("long", changes), ("short", predictions | sessions)):
            for method, path in sorted(asked):
                for name in ("predict", "news", "a.b-c"):
                    assert client.request(method, re.sub(r"\{.*?\}", name, path)).text == expected, (method, path, name)
        for unknown in ("/v1/keysx", "/v1/storex/gc", "/v1/predict"):
            assert client.post(unknown).text == "short"


def test_a_request_cannot_say_that_it_came_from_elsewhere(file: Path, binary: str) -> None:
    port = free_port()
    told = 'http-request return status 200 content-type text/plain lf-string "%[req.hdr(x-forwarded-for)]"'
    file.write_text(file.read_text().replace("    default_backend default", f"    {told}\n    default_backend default"))
    with started(file, variables(binary, Frontend((f"127.0.0.1:{port}",)))):
        forged = {"X-Forwarded-For": "192.0.2.7, 192.0.2.8"}
        with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as client:
            assert client.get(f"http://127.0.0.1:{port}/", headers=forged).text == "127.0.0.2"


@pytest.mark.parametrize("limit", [3, 0])
def test_one_source_cannot_hold_every_connection(limit: int, file: Path, binary: str) -> None:
    """40 connections may be open. With a limit for each source, another source gets one of them; without it, none."""
    port = free_port()
    frontend = Frontend((f"127.0.0.1:{port}",), connections=40, per_source=limit)
    with started(file, variables(binary, frontend)), ExitStack() as held:
        for _ in range(50):
            with suppress(ConnectionError):  # beyond the limit
                idle = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=("127.0.0.2", 0))
                held.enter_context(closing(idle))
        if limit:
            assert httpx.get(f"http://127.0.0.1:{port}/-/healthz", timeout=10).text == "up"
        else:
            with pytest.raises(httpx.TimeoutException):
                httpx.get(f"http://127.0.0.1:{port}/-/healthz", timeout=1)


def test_ipv4_clients_are_sources_of_their_own_where_ipv6_listens_too(file: Path, binary: str) -> None:
    port = free_port()
    binds = (f"0.0.0.0:{port}", f":::{port} v6only")
    with started(file, variables(binary, Frontend(binds, per_source=1))), ExitStack() as held:
        for source in ("127.0.0.2", "127.0.0.3"):
            idle = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(source, 0))
            held.enter_context(closing(idle))
        assert httpx.get(f"http://127.0.0.1:{port}/-/healthz", timeout=10).text == "up"
        assert httpx.get(f"http://[::1]:{port}/-/healthz", timeout=10).text == "up"


def test_a_file_of_another_form_starts_nothing(file: Path, binary: str) -> None:
    before = file.read_text().replace("option splice-request", "option other")
    file.write_text(before)
    said = refused(variables(binary, Frontend()), "-db", "-f", file)
    assert "has a form that this version of ken-serve does not know" in said
    assert file.read_text() == before


def test_a_file_that_haproxy_refuses_starts_nothing_and_says_why(file: Path, binary: str) -> None:
    file.write_text(file.read_text().replace("retries 0", "retires 0"))
    assert "retires" in refused(variables(binary, Frontend()), "-db", "-f", file)


def test_arguments_that_are_not_rays_start_nothing(binary: str) -> None:
    assert "expected `-f FILE`" in refused(variables(binary, Frontend()), "-db", "-f")


def test_a_binary_that_is_gone_is_named(file: Path) -> None:
    assert "/nowhere/haproxy" in refused(variables("/nowhere/haproxy", Frontend()), "-f", file)


# What the launcher checks before anything starts


def test_more_connections_than_files_may_be_open_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, 4096))
    check_startable(2000)
    with pytest.raises(StartError, match=r"4096 connections need \d+ open files.*KEN_MAX_CONNECTIONS"):
        check_startable(4096)
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, haproxystart.resource.RLIM_INFINITY))
    check_startable(1_000_000)


def test_an_installation_that_lost_the_right_to_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "haproxy.sh"
    copy.write_text(ENTRY.read_text())
    monkeypatch.setattr(haproxystart, "ENTRY", copy)
    with pytest.raises(StartError, match="not executable"):
        check_startable(64)
