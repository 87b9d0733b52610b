"""All protocols in one ASGI application."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from serving.api import failures, kserve, native, operations
from serving.api.failures import Shape
from serving.api.middleware import BodyLimit, InFlight, RequestIds
from serving.api.predicting import Predictor
from serving.api.problems import problem
from serving.api.resolve import Resolver
from serving.service import Service

PROTOCOLS = (native.PROTOCOL, kserve.PROTOCOL, operations.PROTOCOL)
"""Routes are tried in this order: the busiest first."""


def create_app(service: Service, *, echo_request_ids: bool = True) -> FastAPI:
    """The application of one replica.

    Args:
        echo_request_ids: False under Ray Serve, which adds the header to answers itself.
    """
    app = FastAPI(title="ken-serve", version=_version(), description=__doc__, redoc_url=None)
    failures.install(app, shape_of)
    predictor = Predictor(service, Resolver(service))
    for protocol in PROTOCOLS:
        app.include_router(protocol.router(service, predictor))
    settings = service.settings
    app.add_middleware(
        BodyLimit, limit=settings.max_body_bytes, seconds=settings.request_timeout_seconds, shape_of=shape_of
    )
    app.add_middleware(InFlight, service=service)
    app.add_middleware(RequestIds, echo=echo_request_ids)
    return app


def shape_of(path: str) -> Shape:
    """How a failure under a path is told: as its protocol does."""
    return next((protocol.shape for protocol in PROTOCOLS if protocol.owns(path)), problem)


def _version() -> str:
    try:
        return version("ken-serve")
    except PackageNotFoundError:
        return "0"
