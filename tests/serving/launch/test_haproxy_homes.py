"""Requests go to the homes of their tasks: the rules and the map, in a real HAProxy with real servers behind it."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.launch.haproxy_admin import AdminSocket
from serving.launch.haproxy_file import Frontend, edited
from serving.launch.haproxy_homes import MAP, map_of, placing, replicas_of, servers_of, slack_for
from serving.launch.haproxy_start import variables
from serving.launch.homes_file import KnownHomes
from serving.launch.homes_keeping import TROUBLE
from serving.launch.ports import free_port
from serving.placement.choices import BUCKETS, Choices, bucket_key, bucket_of
from tests.serving.launch.haproxying import started
from tests.serving.launch.proxied import IDS, NAMES, Proxied, proxied_by

HOMES: dict[str, Choices] = {
    "news": (("one", "two"),),
    "spam": (("two", "three"),),
    "lone": (("three",),),
    "gone": (("absent", "two"),),
    "busy": (("one", "two"), ("two", "three"), ("three", "one")),
    "a.b-c_D": (("three", "one"),),
    **{bucket_key(i): ((NAMES[i % 3], NAMES[(i + 1) % 3]),) for i in range(BUCKETS)},
}


@pytest.fixture
def proxied(file: Path, binary: str) -> Iterator[Proxied]:
    KnownHomes(HOMES, IDS).write(file.parent)
    with proxied_by(file, binary, {}) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "task"),
    [
        ("/v1/tasks/{}/predict", "news"),
        ("/v1/tasks/{}@live/predict", "spam"),
        ("/v1/tasks/{}%40canary/predict", "spam"),
        ("/v1/tasks/{}/predict?x=/v1/tasks/news", "a.b-c_D"),
        ("/v1/tasks/{}/generate", "news"),
        ("/models/{}", "news"),
        ("/models/{}/v1/chat/completions", "spam"),
        ("/models/{}/embed", "spam"),
        ("/v2/models/{}/infer", "lone"),
        ("/v2/models/{}/versions/1/infer", "news"),
    ],
)
def test_a_task_that_the_path_names_is_asked_at_home(path: str, task: str, proxied: Proxied) -> None:
    for _ in range(5):
        assert proxied.asked(path.format(task)) == HOMES[task][0][0]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v2/rerank",
        "/embed",
        "/predict",
        "/rerank",
    ],
)
def test_a_task_that_the_body_names_is_asked_at_home(path: str, proxied: Proxied) -> None:
    for task in ("news", "spam", "lone"):
        for body in ({"model": task, "input": "x"}, {"input": ["x" * 30_000], "model": f"{task}@live"}):
            assert {proxied.asked(path, body) for _ in range(4)} == {HOMES[task][0][0]}


def test_a_body_longer_than_the_buffer_is_answered_and_its_beginning_still_names_the_task(proxied: Proxied) -> None:
    long = "x" * 300_000
    assert {proxied.asked("/v1/embeddings", {"model": "spam", "input": long}) for _ in range(6)} == {"two"}
    for _ in range(3):
        assert proxied.asked("/v1/embeddings", {"input": long, "model": "spam"}) in NAMES


def test_a_task_that_a_header_names_is_asked_at_home(proxied: Proxied) -> None:
    assert {proxied.asked("/embed", **{"X-Ken-Task": "lone@live"}) for _ in range(5)} == {"three"}


@pytest.mark.parametrize(
    "body", [{}, {"model": {"merge": ["news", "spam"]}}, {"model": None}, [1], {"model": ["news"]}]
)
def test_without_a_name_requests_are_spread_as_before(body: object, proxied: Proxied) -> None:
    assert {proxied.asked("/v1/embeddings", body) for _ in range(12)} == set(NAMES)
    assert {proxied.asked("/v1/predict", body) for _ in range(12)} == set(NAMES)


def test_an_unknown_task_has_the_servers_of_its_bucket(proxied: Proxied) -> None:
    for i in range(60):
        task = f"new-{i}"
        assert proxied.asked(f"/v1/tasks/{task}/predict") == HOMES[bucket_key(bucket_of(task))][0][0]


def test_a_task_with_several_homes_is_spread_over_them(proxied: Proxied) -> None:
    found = Counter(proxied.asked("/v1/tasks/busy/predict") for _ in range(150))
    assert set(found) == set(NAMES)
    assert min(found.values()) > 20


def test_a_home_that_is_not_known_to_this_proxy_is_passed_over(proxied: Proxied) -> None:
    assert {proxied.asked("/v1/tasks/gone/predict") for _ in range(5)} == {"two"}


def test_a_home_that_is_too_busy_passes_on_to_the_second(proxied: Proxied) -> None:
    with ThreadPoolExecutor(30) as threads:
        asked = [threads.submit(proxied.asked, "/v1/tasks/news/predict", **{"X-Together": "30"}) for _ in range(30)]
        found = Counter(one.result() for one in asked)
    assert set(found) == {"one", "two"}
    assert found["one"] >= 14
    assert found["two"] >= 6


def test_a_few_requests_at_once_stay_at_home(proxied: Proxied) -> None:
    with ThreadPoolExecutor(5) as threads:
        asked = [threads.submit(proxied.asked, "/v1/tasks/news/predict", **{"X-Together": "5"}) for _ in range(5)]
        assert {one.result() for one in asked} == {"one"}


def test_the_map_is_replaced_while_requests_flow(proxied: Proxied) -> None:
    folder = proxied.file.parent
    admin = AdminSocket(folder / "admin.sock")
    servers = servers_of(proxied.file.read_text())
    for home in ("two", "three", "one"):
        known = KnownHomes({f"task-{i}": ((home,),) for i in range(10_000)}, IDS)
        admin.replace_map(folder / MAP, known.map_for(servers))
        assert {proxied.asked(f"/v1/tasks/task-{i}/predict") for i in (0, 5000, 9999)} == {home}
    admin.replace_map(folder / MAP, "")
    assert {proxied.asked("/v1/tasks/task-1/predict") for _ in range(12)} == set(NAMES)


def test_what_the_admin_socket_refuses_is_told(proxied: Proxied) -> None:
    admin = AdminSocket(proxied.file.parent / "admin.sock")
    with pytest.raises(OSError, match=r"nothing\.map"):
        admin.replace_map(proxied.file.parent / "nothing.map", "a b\n")
    with pytest.raises(FileNotFoundError):
        AdminSocket(proxied.file.parent / "no.sock").pid()


def test_a_body_that_does_not_arrive_is_refused_in_the_form_of_its_protocol(file: Path, binary: str) -> None:
    port = free_port()
    values = variables(binary, Frontend((f"127.0.0.1:{port}",))) | {"RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "1"}
    with started(file, values), socket.create_connection(("127.0.0.1", port), timeout=20) as slow:
        slow.sendall(b'POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"model": "news"')
        answer = slow.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["message"] == "the request did not arrive in time"


@pytest.mark.parametrize("line", ["use-server replica if TRUE", "cookie SERVER insert", "force-persist if TRUE"])
def test_if_only_the_rules_do_not_fit_haproxy_starts_without_them(line: str, file: Path, binary: str) -> None:
    file.write_text(file.read_text().replace("    retries 0", f"    {line}\n    retries 0"))
    with started(file, variables(binary, Frontend(per_source=5))):
        text = file.read_text()
        assert "sc0_conn_cur gt 5" in text, "what guards the server is never left out"
        assert "ken_task" not in text
        assert line in (file.parent / TROUBLE).read_text()


def test_rules_that_haproxy_refuses_are_left_out(file: Path, binary: str, tmp_path: Path) -> None:
    """As by an old HAProxy, which does not know of all that the rules need."""
    old = tmp_path / "old-haproxy"
    refusing = 'if [ "$1" = -c ] && grep -q json_query "$3"; then echo "unknown json_query" >&2; exit 1; fi'
    old.write_text(f'#!/bin/sh\n{refusing}\nexec {binary} "$@"\n')
    old.chmod(0o755)
    with started(file, variables(str(old), Frontend())):
        assert "ken_task" not in file.read_text()
        assert "unknown json_query" in (file.parent / TROUBLE).read_text()


def test_there_is_no_trouble_where_the_rules_fit(proxied: Proxied) -> None:
    assert (proxied.file.parent / TROUBLE).read_text() == ""


def test_the_rules_change_nothing_else(file: Path) -> None:
    before = edited(file.read_text(), Frontend(), file.parent, 35, {"127.0.0.1"})
    after = placing(before, file.parent)
    assert [line for line in after.splitlines() if line in before.splitlines()] == before.splitlines()


def test_a_replica_is_known_by_the_id_that_serve_gave_it() -> None:
    servers = ["SERVE_REPLICA__ken-Replica-abc12345", "SERVE_REPLICA__ken-Replica-0f0f0f0f"]
    assert replicas_of(servers, {"node-0": "abc12345", "node-1": "99999999", "node-2": ""}) == {"node-0": servers[0]}


def test_a_map_has_a_line_for_each_task_and_sixteen_more_for_a_task_with_several_homes() -> None:
    text = map_of({"a": (("s1", "s2"),), "b": (("s1", "s2"), ("s2", "s1"))})
    lines = text.splitlines()
    assert lines[:3] == ["a s1|s2", "b *", "b*0 s1|s2"]
    assert len(lines) == 18


def test_what_cannot_be_the_name_of_a_task_is_not_in_the_map() -> None:
    homes = {"good": (("s",),), "two words": (("s",),), "a\nb": (("s",),), "": (("s",),), "\n": (("s",),)}
    assert map_of(homes).splitlines() == ["good s"]


def test_proxies_share_what_a_home_may_have_beside_its_share() -> None:
    assert [slack_for(proxies) for proxies in (0, 1, 2, 4, 100)] == [4, 4, 2, 1, 1]


def test_with_less_slack_a_home_passes_on_sooner(file: Path, binary: str) -> None:
    KnownHomes(HOMES, IDS, slack=1).write(file.parent)
    with proxied_by(file, binary, {}) as proxied, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(proxied.asked, "/v1/tasks/news/predict", **{"X-Together": "8"}) for _ in range(8)]
        assert {one.result() for one in asked} == {"one", "two"}


def test_where_placement_is_off_haproxy_has_no_rules(file: Path, binary: str) -> None:
    with started(file, variables(binary, Frontend(per_source=5), placement="off")):
        assert "ken_task" not in file.read_text()
        assert "sc0_conn_cur gt 5" in file.read_text()
        assert not (file.parent / TROUBLE).exists()


def test_a_file_of_homes_that_cannot_be_read_is_taken_for_none(tmp_path: Path) -> None:
    assert KnownHomes.read(tmp_path) == KnownHomes()
    for content in ("", "[]", '{"asked": 1}', '{"asked": {"a": 5}, "ids": {}}', "\0"):
        (tmp_path / "homes.json").write_text(content)
        assert KnownHomes.read(tmp_path) == KnownHomes()
    KnownHomes(HOMES, IDS).write(tmp_path)
    assert KnownHomes.read(tmp_path) == KnownHomes(HOMES, IDS)
