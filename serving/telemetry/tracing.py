"""OpenTelemetry traces of requests: one span a request, and one below it for each stage it went through.

Where to is said by OpenTelemetry's own variables: spans are made where ``OTEL_EXPORTER_OTLP_ENDPOINT`` or
``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set, and go there over HTTP. A request's ``traceparent`` (W3C Trace Context)
says which trace it belongs to. Spans are made when the request has been answered, from the times measured anyway.
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
    """Makes spans and hands them to an exporter, on a thread of its own."""

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
            task, digest: None where it did not come so far.
            code: HTTP status; 499 where the client left first.
            seconds: from its arrival to its answer.
            stages: names and seconds; each begins where the one before ended.
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
        """Send what was not sent yet."""
        self._provider.shutdown()


def tracer_from_environment(replica: str) -> Tracer | None:
    """A tracer where the environment says where spans go, else None.

    Raises:
        StartError: it does, but what sends them is not installed.
    """
    endpoint = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise StartError(f"{endpoint} is set, but no exporter is there: pip install 'ken-serve[tracing]'") from None
    return Tracer(OTLPSpanExporter(), replica)
