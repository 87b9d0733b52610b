"""Bad requests through the real proxy: the right status, a problem that explains, nothing lost."""

from __future__ import annotations

import gzip

import httpx
import pytest

from serving.launch.server_process import ServerProcess

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"inputs": "\xff"}', 400),
        (b'{"inputs": 5}', 422),
        (b'{"inputs": []}', 422),
        (b'{"input": "x"}', 422),
        (b'{"inputs": "x", "parameters": {"top_k": "many"}}', 422),
        (b'{"inputs": "' + b"x" * (3 << 20) + b'"}', 413),
    ],
)
def test_bad_bodies_are_refused_with_a_problem(server: ServerProcess, content: bytes, status: int) -> None:
    response = httpx.post(f"{server.url}/v1/tasks/news/predict", content=content, timeout=60)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]


def test_a_body_sent_in_chunks_is_counted_too(server: ServerProcess) -> None:
    def chunks() -> object:
        for _ in range(40):
            yield b"x" * 100_000

    response = httpx.post(f"{server.url}/v1/tasks/news/predict", content=chunks(), timeout=60)  # type: ignore[arg-type]
    assert response.status_code == 413


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 200), ("br", 415), ("deflate", 400)])
def test_a_compressed_body_arrives_as_it_was_sent(server: ServerProcess, encoding: str, status: int) -> None:
    packed = gzip.compress(b'{"inputs": "x", "kind": null}')
    headers = {"Content-Encoding": encoding}
    response = httpx.post(f"{server.url}/v1/tasks/news/predict", content=packed, headers=headers, timeout=60)
    assert response.status_code == status, response.text
    assert response.headers.get("accept-encoding") == ("gzip, deflate, zstd" if status == 415 else None)


@pytest.mark.parametrize(("path", "status"), [("/readyz", 200), ("/v1/tasks/news", 200), ("/v1/tasks/newz", 404)])
def test_head_is_answered_as_get_is(server: ServerProcess, path: str, status: int) -> None:
    with httpx.Client(
        base_url=server.url
    ) as client:  # one connection: an unexpected body would be read as part of the next answer
        head, got = client.head(path), client.get(path)
    assert (head.status_code, got.status_code, head.content) == (status, status, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


def test_an_unknown_task_is_answered_with_names_near_it(server: ServerProcess) -> None:
    response = httpx.post(f"{server.url}/v1/tasks/newz/predict", json={"inputs": "x"})
    assert response.status_code == 404
    assert "'news'" in response.json()["detail"]


def test_a_request_id_is_echoed_once(server: ServerProcess) -> None:
    response = httpx.get(f"{server.url}/readyz", headers={"X-Request-Id": "mine-1"})
    assert response.headers.get_list("x-request-id") == ["mine-1"]


def test_metrics_speak_of_the_requests_answered(server: ServerProcess) -> None:
    httpx.post(f"{server.url}/v1/tasks/news/predict", json={"inputs": "x"}, timeout=60).raise_for_status()
    text = httpx.get(f"{server.url}/metrics").text
    assert 'ken_requests_total{code="200",replica="' in text
    assert "ken_store_up{" in text
