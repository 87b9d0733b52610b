"""All protocols in one ASGI application."""

from __future__ import annotations

from fastapi import FastAPI

from ken_core.version import __version__
from serving.api import (
    activity,
    cohere,
    console_page,
    docs_page,
    document,
    events,
    failures,
    headers,
    huggingface,
    kept,
    keys,
    kserve,
    many_tasks,
    native,
    native_generation,
    openai,
    openai_generation,
    operations,
    session,
    tasks,
    tei,
    uploads,
)
from serving.api.auth import Authenticator
from serving.api.changes import AuditedChanges
from serving.api.encodings import Unpacked
from serving.api.middleware import BodyLimit, HeadAsGet, InFlight, RequestIds
from serving.api.predicting import Predictor
from serving.api.protocol import Protocol
from serving.api.resolve import Resolver
from serving.api.store_notice import StoreNotice
from serving.service import Service
from serving.store import CHUNK_BYTES

PROTOCOLS = (
    native.PROTOCOL,
    native_generation.PROTOCOL,
    many_tasks.PROTOCOL,
    openai.PROTOCOL,
    openai_generation.PROTOCOL,
    huggingface.PROTOCOL,
    tei.PROTOCOL,
    cohere.PROTOCOL,
    kserve.PROTOCOL,
)
"""Protocols of predictions. Routes are tried in this order, so the busiest come first."""

MANAGEMENT = (tasks.router, uploads.router, keys.router, operations.router)
VIEWS = (session.router, activity.router, events.router, kept.router)
"""What the console needs beside these, and changes nothing."""


def create_app(service: Service, *, echo_request_ids: bool = True) -> FastAPI:
    """The application of one replica.

    Args:
        echo_request_ids: False under Ray Serve, which adds the header to answers itself.
    """
    app = FastAPI(
        title="ken-serve",
        version=__version__,
        description=document.DESCRIPTION,
        openapi_tags=document.TAGS,
        docs_url=None,
        redoc_url=None,
    )
    failures.install(app, lambda path: protocol_of(path).shape)
    authenticator = Authenticator(service.settings, service.table)
    predictor = Predictor(service, Resolver(service.table, authenticator))
    changes = AuditedChanges(service, authenticator)
    for protocol in PROTOCOLS:
        app.include_router(protocol.router(service, predictor))
    for router in MANAGEMENT:
        app.include_router(router(service, authenticator, changes))
    for view in VIEWS:
        app.include_router(view(service, authenticator))
    console_page.install(app)
    docs_page.install(app)
    app.add_middleware(Unpacked, limit_of=lambda path: body_limit(service, path))
    app.add_middleware(
        BodyLimit,
        limit_of=lambda path: body_limit(service, path),
        seconds=service.settings.request_timeout_seconds,
        shape_of=lambda path: protocol_of(path).shape,
    )
    app.add_middleware(InFlight, admission=service.admission)
    app.add_middleware(StoreNotice, notice=lambda: service.watch.notice)
    app.add_middleware(RequestIds, echo=echo_request_ids)
    app.add_middleware(HeadAsGet)
    headers.install(app, service.settings, service.replica)
    document.install(app, lambda path: protocol_of(path).failing)
    return app


def protocol_of(path: str) -> Protocol:
    """The protocol in whose form failures under a path are answered: the native one where no other owns the path."""
    return next((protocol for protocol in PROTOCOLS if protocol.owns(path)), native.PROTOCOL)


def body_limit(service: Service, path: str) -> int:
    """The most bytes that a body under a path may have, as it is sent and as it is unpacked."""
    return CHUNK_BYTES if path.startswith(f"{uploads.PREFIX}/") else service.settings.max_body_bytes
