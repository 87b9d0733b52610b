"""This project's server with an exchange that does nothing: all its work except switching, and wrong answers.

KEN_BASE=... KEN_PORT=... python -m benchmarks.peers.noop
"""

from __future__ import annotations

from typing import Any

from benchmarks.peers.on_ray import serve_with


def replace() -> None:
    from serving import app

    class NoopReplica(app.Replica.func_or_class):  # type: ignore[name-defined,misc]
        async def __init__(self, settings: dict[str, object]) -> None:
            from functools import partial

            from ken_core.kernels import exchange_for
            from serving import service

            def nothing(device: Any, dtype: Any) -> Any:
                exchange_for(device, dtype)  # warms the real kernel, so that the process has the same threads
                return lambda arena, packed: None

            service.ResidentModel = partial(service.ResidentModel, exchange_factory=nothing, switch_factory=None)  # type: ignore
            await super().__init__(settings)

    app.Replica = app.Replica.options(func_or_class=NoopReplica)  # type: ignore


if __name__ == "__main__":
    serve_with(replace)
