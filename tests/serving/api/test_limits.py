"""What a request may ask of a replica, and how each limit refuses: status, reason, and when to try again."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from holding import Blocked, deadlines_held, until

from serving.api import create_app
from serving.service import Service
from tests.tiny_checkpoints import Deltas

Client = httpx.AsyncClient
Metric = Callable[..., float]
Talk = Callable[..., Any]
MakeLimited = Callable[..., Service]

SPAM = "/v1/tasks/spam/predict"
RAIN = {"inputs": "rain"}
INFER = "/v2/models/spam/infer"
RAIN_TENSOR = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["rain"]}]}


@pytest.fixture
def limited(make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas) -> MakeLimited:
    """A service with the task spam and the limits given."""

    def make(**limits: Any) -> Service:
        service = make_service(**limits)
        publish("spam", deltas.spam)
        return service

    return make


def is_refusal(response: httpx.Response, status: int, *words: str) -> bool:
    assert response.status_code == status, response.text
    assert all(word in response.json()["detail"] for word in words), response.text
    return True


# Time


def test_a_client_may_ask_for_less_time_and_gets_504_past_it(limited: MakeLimited, talk: Talk, metric: Metric) -> None:
    service = limited()

    async def conversation(client: Client) -> None:
        await client.post(SPAM, json=RAIN)
        with Blocked(service.engine), deadlines_held() as let:
            asked = asyncio.create_task(client.post(SPAM, json=RAIN, headers={"X-Request-Timeout-Ms": "50"}))
            await until(lambda: service.engine.waiting == 1)
            let()
            assert is_refusal(await asked, 504, "0.05 s")
        assert (await client.post(SPAM, json=RAIN)).status_code == 200

    talk(service, conversation)
    assert metric(service, "ken_dropped_rows_total", reason="expired") == 1
    assert metric(service, "ken_batch_rows_count") == 2
    assert metric(service, "ken_requests_total", code="504") == 1


def test_no_client_gets_more_time_than_the_server_gives(limited: MakeLimited, talk: Talk) -> None:
    service = limited(request_timeout_seconds=0.1)

    async def conversation(client: Client) -> None:
        with Blocked(service.engine):
            late = await client.post(SPAM, json=RAIN, headers={"X-Request-Timeout-Ms": "60000"})
        assert is_refusal(late, 504, "0.1 s")

    talk(service, conversation)


@pytest.mark.parametrize("asked", ["", "0", "-1", "1.5", "1e3", "soon", "9" * 20, "²"])
def test_a_time_that_is_no_number_of_milliseconds_is_refused(asked: str, limited: MakeLimited, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        refused = await client.post(SPAM, json=RAIN, headers={"X-Request-Timeout-Ms": asked.encode("latin-1")})
        assert is_refusal(refused, 400, "X-Request-Timeout-Ms", "whole milliseconds")

    talk(limited(), conversation)


# Load


def test_more_requests_than_may_run_are_told_when_to_come_again(limited: MakeLimited, talk: Talk) -> None:
    service = limited(max_requests=2)

    async def conversation(client: Client) -> None:
        await client.post(SPAM, json=RAIN)
        with Blocked(service.engine):
            service.engine._executor._cost.fixed = 5.0
            running = [asyncio.create_task(client.post(SPAM, json=RAIN)) for _ in range(2)]
            await until(lambda: service.engine.waiting == 2)
            refused = await client.post(SPAM, json=RAIN)
            backlog = service.engine.backlog_seconds()
        assert is_refusal(refused, 429, "2 requests are in flight")
        assert backlog > 2
        assert refused.headers["retry-after"] == str(math.ceil(backlog))
        assert [(await one).status_code for one in running] == [200, 200]
        assert (await client.post(SPAM, json=RAIN)).status_code == 200

    talk(service, conversation)


def test_more_tokens_than_allowed_are_refused_before_they_cost_a_forward_pass(
    limited: MakeLimited, talk: Talk, metric: Metric
) -> None:
    service = limited(max_tokens=16)

    async def conversation(client: Client) -> None:
        assert (await client.post(SPAM, json={"inputs": ["rain"] * 5})).status_code == 200
        refused = await client.post(SPAM, json={"inputs": ["rain"] * 6})
        assert is_refusal(refused, 413, "18 tokens", "16")

    talk(service, conversation)
    assert metric(service, "ken_batch_rows_sum") == 5


def test_refusals_for_load_keep_the_form_of_the_protocol(limited: MakeLimited, talk: Talk) -> None:
    service = limited(max_requests=1, max_body_bytes=2048)

    async def conversation(client: Client) -> None:
        with Blocked(service.engine):
            running = asyncio.create_task(client.post(INFER, json=RAIN_TENSOR))
            await until(lambda: service.engine.waiting == 1)
            refused = await client.post(INFER, json=RAIN_TENSOR)
        assert (refused.status_code, list(refused.json())) == (429, ["error"])
        assert int(refused.headers["retry-after"]) >= 1
        assert (await running).status_code == 200
        too_long = await client.post(INFER, content=b" " * 4096)
        assert (too_long.status_code, list(too_long.json())) == (413, ["error"])

    talk(service, conversation)


# Clients that stall


async def stalled(until_set: asyncio.Event) -> AsyncIterator[bytes]:
    yield b'{"inputs": '
    await until_set.wait()


async def dripping() -> AsyncIterator[bytes]:
    while True:
        yield b" "
        await asyncio.sleep(0.01)


def test_clients_that_stall_hold_nobodys_place(limited: MakeLimited, talk: Talk) -> None:
    service = limited(max_requests=1)

    async def conversation(client: Client) -> None:
        over = asyncio.Event()
        stalling = [asyncio.create_task(client.post(SPAM, content=stalled(over))) for _ in range(20)]
        await until(lambda: service.admission.requests == 20)
        assert [(await client.post(SPAM, json=RAIN)).status_code for _ in range(5)] == [200] * 5
        over.set()
        assert {(await one).status_code for one in stalling} == {400}

    talk(service, conversation)
    assert service.admission.requests == 0


@pytest.mark.parametrize("slow", [lambda: stalled(asyncio.Event()), dripping])
def test_a_body_that_does_not_arrive_is_408_whether_it_stalls_or_drips(
    slow: Callable[[], AsyncIterator[bytes]], limited: MakeLimited, talk: Talk, metric: Metric
) -> None:
    service = limited(request_timeout_seconds=0.2)

    async def conversation(client: Client) -> None:
        refused = await client.post(SPAM, content=slow())
        assert is_refusal(refused, 408, "0.2 s")
        assert refused.headers["connection"] == "close"

    talk(service, conversation)
    assert metric(service, "ken_requests_total", code="408") == 1


@pytest.mark.parametrize("sent", [b"", b'{"inputs": '])
def test_a_client_that_goes_in_the_middle_of_its_body_is_no_failure_of_the_server(
    sent: bytes, limited: MakeLimited, metric: Metric, caplog: pytest.LogCaptureFixture
) -> None:
    service = limited()
    messages = [{"type": "http.request", "body": sent, "more_body": True}, {"type": "http.disconnect"}]
    answered = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    scope = {"type": "http", "method": "POST", "path": SPAM, "headers": [], "query_string": b""}
    with caplog.at_level(logging.WARNING):
        asyncio.run(create_app(service)(scope, receive, send))  # type: ignore[arg-type]
    assert answered == []
    assert caplog.records == []
    assert metric(service, "ken_requests_total", code="499") == 1
    assert service.admission.requests == 0


# Stopping


def test_a_drain_waits_for_the_requests_of_every_protocol(limited: MakeLimited, talk: Talk) -> None:
    service = limited()

    async def conversation(client: Client) -> None:
        await client.post(SPAM, json=RAIN)
        with Blocked(service.engine):
            accepted = [
                asyncio.create_task(client.post(path, json=body)) for path, body in ((SPAM, RAIN), (INFER, RAIN_TENSOR))
            ]
            await until(lambda: service.engine.waiting == 2)
            draining = asyncio.create_task(service.drain(20))
            await until(lambda: service.admission.draining)
            refused = [await client.post(path, json=body) for path, body in ((SPAM, RAIN), (INFER, RAIN_TENSOR))]
        assert [r.status_code for r in refused] == [503, 503]
        assert all("stopping" in r.text and int(r.headers["retry-after"]) >= 1 for r in refused)
        assert await draining == 0
        assert [(await one).status_code for one in accepted] == [200, 200]

    talk(service, conversation)
