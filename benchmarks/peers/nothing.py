"""This project's server with a handler that reads a request and answers at once.

KEN_BASE=... KEN_PORT=... python -m benchmarks.peers.nothing
"""

from __future__ import annotations

from typing import Any

from benchmarks.peers.on_ray import serve_with

_BODY: Any = {"type": "http.response.body", "body": b"{}"}


def replace() -> None:
    from serving import app

    class NothingReplica(app.Replica.func_or_class):  # type: ignore[name-defined,misc]
        def __serve_build_asgi_app__(self) -> Any:
            real = super().__serve_build_asgi_app__()

            async def application(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] != "http" or not scope["path"].startswith("/v1/tasks/"):
                    await real(scope, receive, send)
                    return
                while (await receive()).get("more_body"):
                    pass
                # new each time: Serve adds a header to it
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
                await send(_BODY)

            return application

    app.Replica = app.Replica.options(func_or_class=NothingReplica)  # type: ignore


if __name__ == "__main__":
    serve_with(replace)
