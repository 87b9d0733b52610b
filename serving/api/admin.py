"""Who may change things: the holder of the admin token, or, without one, whoever is on this machine."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from fastapi import Request

from serving.errors import ForbiddenError
from serving.service import Service


def admin_only(service: Service) -> Callable[[Request], None]:
    """A dependency that raises `ForbiddenError` unless the request may change things."""

    def check(request: Request) -> None:
        token = service.settings.admin_token
        if token is None:
            if not service.settings.on_loopback:
                raise ForbiddenError("this is shut off: the server listens beyond loopback without KEN_ADMIN_TOKEN")
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), token.get_secret_value().encode()):
            raise ForbiddenError("this needs the header 'Authorization: Bearer <KEN_ADMIN_TOKEN>'")

    return check
