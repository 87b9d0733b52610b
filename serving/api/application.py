"""All protocols in one ASGI application."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from serving.api import native, operations, problems
from serving.api.middleware import BodyLimit, InFlight, RequestIds
from serving.service import Service


def create_app(service: Service, *, echo_request_ids: bool = True) -> FastAPI:
    """The application of one replica.

    Args:
        echo_request_ids: False under Ray Serve, which adds the header to answers itself.
    """
    app = FastAPI(title="ken-serve", version=_version(), description=__doc__, redoc_url=None)
    problems.install(app)
    app.include_router(native.router(service))
    app.include_router(operations.router(service))
    app.add_middleware(BodyLimit, limit=service.settings.max_body_bytes)
    app.add_middleware(InFlight, service=service)
    app.add_middleware(RequestIds, echo=echo_request_ids)
    return app


def _version() -> str:
    try:
        return version("ken-serve")
    except PackageNotFoundError:
        return "0"
