"""OpenTelemetry traces: one span for each request, with a child span for each stage that the request went through.

Tracing is on if one of OpenTelemetry's variables ``OTEL_EXPORTER_OTLP_ENDPOINT`` and
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set; spans are sent there over HTTP. A request's header ``traceparent``
(W3C Trace Context) names the trace it belongs to. Spans are made after the answer, from times that are measured anyway.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ken_core.version import __version__
from serving.errors import StartError
from serving.telemetry.measured import Measured

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanKind

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
        self._tracer = self._provider.get_tracer("ken-serve", __version__)
        self._context = TraceContextTextMapPropagator()

    def record(self, headers: Mapping[str, str], request: Measured, tasks: Sequence[Measured] = ()) -> None:
        """Make the spans of a request that ends now.

        Args:
            headers: of the request.
            request: the request as a whole.
            tasks: its question to each task, where it asks many: a span each, below the request's. They begin about
                when the request does, so their spans begin with its span.
        """
        from opentelemetry.trace import SpanKind

        begin = time.time_ns() - int(request.seconds * _NANO)
        context = self._context.extract({"traceparent": headers.get("traceparent", "")})
        named = {"ken.request_id": headers.get("x-request-id")}
        inside = self._span("predict", request, begin, context, SpanKind.SERVER, named)
        for task in tasks:
            self._span("task", task, begin, inside, SpanKind.INTERNAL, {})

    def _span(
        self,
        name: str,
        measured: Measured,
        begin: int,
        context: Context,
        kind: SpanKind,
        facts: Mapping[str, str | None],
    ) -> Context:
        """Make a span with its stages below it; returns the context of spans below it."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        end = begin + int(measured.seconds * _NANO)
        facts = {"ken.task": measured.task, "ken.delta": measured.digest, **facts}
        known = {fact: value for fact, value in facts.items() if value is not None}
        span = self._tracer.start_span(
            name, context, kind, {"http.response.status_code": measured.code, **known}, start_time=begin
        )
        inside, at = set_span_in_context(span, context), begin
        for stage, took in measured.stages:
            upto = min(end, at + int(took * _NANO))
            self._tracer.start_span(stage, inside, start_time=at).end(upto)
            at = upto
        if measured.code >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)
        return inside

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
