"""OpenTelemetry traces: one span for each request, with a child span for each stage that the request went through.

Tracing is on if one of OpenTelemetry's variables ``OTEL_EXPORTER_OTLP_ENDPOINT`` and
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set; spans are sent there over HTTP. A request's header ``traceparent``
(W3C Trace Context) names the trace it belongs to. Spans are made after the answer, from times that are measured anyway.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from serving.errors import StartError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NANO = 1_000_000_000


class Tracer:
    """Makes spans and hands them to an exporter, which runs on a thread of its own."""

    def __init__(self, exporter: SpanExporter, replica: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "ken-serve"), "service.instance.id": replica}
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ken-serve", version("ken-serve"))
        self._context = TraceContextTextMapPropagator()

    def record(
        self,
        headers: Mapping[str, str],
        task: str | None,
        digest: str | None,
        code: int,
        seconds: float,
        stages: Iterable[tuple[str, float]],
    ) -> None:
        """Make the spans of a request that ends now.

        Args:
            headers: of the request.
            task, digest: None if the request failed before they were known.
            code: HTTP status; 499 if the client left before the answer.
            seconds: from the request's arrival to its answer.
            stages: names and seconds; each stage begins when the one before it ends.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        end = time.time_ns()
        begin = end - int(seconds * _NANO)
        facts = {"ken.task": task, "ken.delta": digest, "ken.request_id": headers.get("x-request-id")}
        span = self._tracer.start_span(
            "predict",
            self._context.extract({"traceparent": headers.get("traceparent", "")}),
            SpanKind.SERVER,
            {"http.response.status_code": code, **{name: fact for name, fact in facts.items() if fact is not None}},
            start_time=begin,
        )
        inside, at = set_span_in_context(span), begin
        for name, took in stages:
            upto = min(end, at + int(took * _NANO))
            self._tracer.start_span(name, inside, start_time=at).end(upto)
            at = upto
        if code >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def close(self) -> None:
        """Send the remaining spans and stop."""
        self._provider.shutdown()


def tracer_from_environment(replica: str) -> Tracer | None:
    """A tracer if the environment names an endpoint for spans, else None.

    Raises:
        StartError: it names an endpoint, but the exporter is not installed.
    """
    endpoint = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise StartError(f"{endpoint} is set, but no exporter is installed: pip install 'ken-serve[tracing]'") from None
    return Tracer(OTLPSpanExporter(), replica)
