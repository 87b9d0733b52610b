"""The Ray Serve application. Its one deployment is both ingress and engine, so that there is no hop between the two.

A KubeRay ``serveConfigV2`` needs only ``import_path: serving.app:build``, the settings as ``args``, and for the
deployment ``Replica`` either an ``autoscaling_config`` or a number of replicas, ``num_replicas``. Secrets come from the
containers' environment.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from ray import serve

APP = "ken"
_SERVER_TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"
_GENERATION_TIMEOUT = "KEN_GENERATION_TIMEOUT_SECONDS"
_UNBOUNDED = 1_000_000


@serve.deployment(
    name="Replica",
    # Serve must refuse no request: the service's own queue knows deadlines and says when to retry
    max_ongoing_requests=_UNBOUNDED,
    max_queued_requests=-1,
    health_check_period_s=5,
    health_check_timeout_s=15,
    graceful_shutdown_wait_loop_s=0.1,
    graceful_shutdown_timeout_s=60,
)
@serve.ingress()
class Replica:
    """One base on one device.

    Torch is imported in the constructor: processes that only describe the application do not need it.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from serving.config import load_settings
        from serving.errors import StartError
        from serving.security.exposure import check_exposure
        from serving.security.loopback import keep_to_loopback
        from serving.telemetry.logs import configure

        loaded = load_settings(**settings)
        configure(loaded)
        keep_to_loopback()
        from serving.service import Service

        if loaded.redis_secret is None:
            raise StartError("found no store; set KEN_REDIS_URL in every container of the cluster")
        self._service = Service(loaded, loaded.redis_secret, serve.get_replica_context().replica_id.unique_id)
        self._service.start()
        check_exposure(loaded, lambda: bool(self._service.table.current.keys))

    def __serve_build_asgi_app__(self) -> Any:
        from serving.api import create_app

        return create_app(self._service, echo_request_ids=False)

    def check_health(self) -> None:
        """Raises an error if the weights are poisoned or the engine has ended. Ray then replaces this replica."""
        self._service.check()

    async def drain(self, seconds: float) -> int:
        """Refuse new requests, wait for accepted ones, and return how many are still not answered after `seconds`."""
        return await self._service.drain(seconds)

    def __del__(self) -> None:
        service = getattr(self, "_service", None)
        if service is not None:
            service.stop()


def build(args: dict[str, Any]) -> serve.Application:
    """The application for these settings of `serving.config.Settings`. Secrets are read from the environment only.

    In a ``serveConfigV2``, `args` are part of the application's version: Serve replaces every replica when they change.
    So `args` with ``replicas`` are for programs only, which change nothing later. Without it, the deployment states no
    number either, whatever the environment says: beside an ``autoscaling_config`` there must be none.
    """
    from serving.config import load_settings
    from serving.security.exposure import exposure_warning

    settings = load_settings(**args)
    for warning in (
        exposure_warning(settings),
        timeout_warning(settings.request_timeout_seconds, os.environ),
        generation_warning(settings.generation_timeout_seconds, os.environ),
    ):
        if warning is not None:
            logging.getLogger(__name__).warning("%s", warning)
    gpus = 1 if settings.device.startswith("cuda") else 0
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 1, "num_gpus": gpus}}
    if args.get("replicas") is not None:
        options["num_replicas"] = settings.replicas
    deployment = Replica.options(**options)  # type: ignore[attr-defined]
    return deployment.bind(settings.for_replicas())  # type: ignore[no-any-return]


def timeout_warning(request_timeout: float, environment: Mapping[str, str]) -> str | None:
    """A warning if HAProxy gives up on a replica before a request's time is up.

    Args:
        request_timeout: seconds that a request may take.
        environment: with the variable that says how long HAProxy waits. Without it, HAProxy waits as long as it takes.
    """
    waits = environment.get(_SERVER_TIMEOUT)
    if not waits or float(waits) > request_timeout:
        return None
    return (
        f"request_timeout_seconds is {request_timeout:g}, but HAProxy answers 504 after {waits} s; "
        f"set {_SERVER_TIMEOUT} to {request_timeout + 5:.0f} in every container of the cluster"
    )


def generation_warning(generation_timeout: float, environment: Mapping[str, str]) -> str | None:
    """A warning if HAProxy gives up on a replica before a text's time is up.

    Args:
        generation_timeout: seconds that a text may take.
        environment: of HAProxy. If it does not say how long texts may take, HAProxy knows the default alone.
    """
    from serving.config import Settings

    default = Settings.model_fields["generation_timeout_seconds"].default
    known = environment.get(_GENERATION_TIMEOUT)
    if generation_timeout <= float(known or default):
        return None
    return (
        f"generation_timeout_seconds is {generation_timeout:g}, but HAProxy was told {known or 'nothing'}; set "
        f"{_GENERATION_TIMEOUT} to {generation_timeout:g} in every container of the cluster"
    )
