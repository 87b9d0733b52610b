"""Traces as a collector receives them over OTLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest

from serving.service import Service
from serving.telemetry.tracing import ENDPOINTS
from tests.tiny_checkpoints import Deltas

otlp = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The spans that arrive at a small collector, whose address the environment has."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            body = self.rfile.read(int(self.headers["Content-Length"]))
            plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            sent = otlp.ExportTraceServiceRequest.FromString(plain)
            spans.extend(s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv(ENDPOINTS[1], f"http://127.0.0.1:{server.server_port}")
    yield spans
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_request_is_a_span_of_its_callers_trace_with_its_stages_below(
    collector: list[Any],
    make_service: Callable[..., Service],
    publish: Callable[..., None],
    deltas: Deltas,
    talk: Callable[..., Any],
) -> None:
    publish("spam", deltas.spam)
    service = make_service()

    async def conversation(client: httpx.AsyncClient) -> None:
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "X-Request-Id": "traced"}
        await client.post("/v1/tasks/spam/predict", json={"inputs": "rain"}, headers=headers)
        await client.post("/v1/tasks/nobody/predict", json={"inputs": "rain"})

    talk(service, conversation)
    service.stop()
    roots = [span for span in collector if span.name == "predict"]
    answered = next(span for span in roots if span.trace_id.hex() == TRACE)
    refused = next(span for span in roots if span is not answered)
    facts = {a.key: a.value.string_value or a.value.int_value for a in answered.attributes}
    assert facts == {
        "http.response.status_code": 200,
        "ken.task": "spam",
        "ken.delta": deltas.spam.digest,
        "ken.request_id": "traced",
    }
    assert answered.parent_span_id.hex() == CALLER
    stages = sorted(
        (s for s in collector if s.parent_span_id == answered.span_id), key=lambda s: s.start_time_unix_nano
    )
    assert [s.name for s in stages] == ["load", "tokenize", "queue", "swap", "model"]
    assert answered.start_time_unix_nano == stages[0].start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= answered.end_time_unix_nano
    assert {a.key: a.value.int_value for a in refused.attributes}["http.response.status_code"] == 404


def test_a_request_to_many_tasks_is_one_span_with_a_span_a_task_below(
    collector: list[Any], service: Service, deltas: Deltas, talk: Callable[..., Any]
) -> None:
    async def conversation(client: httpx.AsyncClient) -> None:
        await client.post("/v1/predict", json={"tasks": ["spam", "nobody"], "inputs": "rain"})

    talk(service, conversation)
    service.stop()
    [whole] = [span for span in collector if span.name == "predict"]
    tasks = [span for span in collector if span.name == "task"]
    assert {span.trace_id for span in collector} == {whole.trace_id}
    assert {span.parent_span_id for span in tasks} == {whole.span_id}
    facts = [{a.key: a.value.string_value or a.value.int_value for a in span.attributes} for span in (whole, *tasks)]
    assert facts[0].pop("ken.request_id")
    assert facts == [
        {"http.response.status_code": 200},
        {"http.response.status_code": 200, "ken.task": "spam", "ken.delta": deltas.spam.digest},
        {"http.response.status_code": 404},
    ]
    stages = {span.name for span in collector if span.parent_span_id == tasks[0].span_id}
    assert stages == {"load", "tokenize", "queue", "swap", "model"}


def test_without_an_endpoint_nothing_is_traced(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert make_service().tracer is None
