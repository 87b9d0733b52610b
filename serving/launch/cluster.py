"""A private Ray cluster that runs the application: started, watched until a signal comes, and ended."""

from __future__ import annotations

import logging
import os
import secrets
import time
from pathlib import Path
from typing import Any

from serving.config import Settings
from serving.engine.cores import usable_cores
from serving.launch.announcing import Say, as_configured
from serving.launch.haproxy_start import variables
from serving.launch.listening import behind_haproxy, frontend, in_front, url
from serving.launch.ray_daemons import Daemons
from serving.launch.ray_messages import reason_of, show_replicas_only
from serving.launch.ray_variables import for_launcher, forget_other_clusters
from serving.launch.served import what_is_served
from serving.launch.stop_signals import StopFlag, StoppedError
from serving.launch.stopping import close_proxy, drain, end_cluster, replicas_run
from serving.telemetry.logs import configure

_OBJECT_STORE_BYTES = 80 << 20


def run_cluster(settings: Settings, haproxy: str | None, store_url: str, folder: Path, say: Say) -> int:
    """Start the cluster, wait for a signal, stop the cluster, and return the exit code. Runs in the supervised child.

    Args:
        haproxy: path of HAProxy; None for Ray's stock proxy.
        folder: private to the server's owner, with a short path.
    """
    forget_other_clusters()
    texts = settings.generation_timeout_seconds
    haproxys = (
        variables(haproxy, frontend(settings, folder), settings.namespace, settings.placement, texts)
        if haproxy
        else None
    )
    os.environ.update(for_launcher(folder, haproxys, settings.request_timeout_seconds, texts))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(_new_token(folder))
    os.environ["KEN_REDIS_URL"] = store_url
    if settings.admin_token:
        os.environ["KEN_ADMIN_TOKEN"] = settings.admin_token.get_secret_value()
    _let_workers_import_us()
    stop = StopFlag()
    stop.install()
    code = 1
    try:
        _start_cluster(settings, folder)
        stop.install()  # again: ray.init replaces the handlers
        daemons = Daemons()
        with daemons.needed():
            start_application(settings, behind_haproxy(settings) if haproxy else in_front(settings))
            stop.ready = True
        code = _serve_until_stopped(settings, store_url, daemons, stop, say)
    except (StoppedError, SystemExit):  # SystemExit comes from ray.init's own handler
        code = _stop_early(settings, say)
    except Exception as error:
        if stop.asked:
            code = _stop_early(settings, say)
        else:
            as_configured(settings, say, logging.ERROR)(f"the server did not start: {reason_of(error)}")
    finally:
        stop.ignore()
        end_cluster()
    return code


def _start_cluster(settings: Settings, folder: Path) -> None:
    import ray

    gpus = settings.replicas if settings.device.startswith("cuda") else 0
    ray.init(
        address="local",
        namespace="ken",
        num_cpus=settings.replicas + 1,
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=True,
        logging_level=logging.WARNING,
        _temp_dir=str(folder / "r"),  # Ray makes it readable by every user; `folder` is not
        _node_ip_address="127.0.0.1",
    )
    show_replicas_only()


def start_application(settings: Settings, where: dict[str, Any]) -> None:
    from ray import serve as ray_serve
    from ray.serve.schema import LoggingConfig

    from serving.app import APP, build

    configure(settings)  # again: ray.init gives its loggers handlers of their own
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    ray_serve.start(proxy_location="HeadOnly", http_options=where, logging_config=quiet)
    ray_serve.run(build(_with_threads(settings).shareable()), name=APP, route_prefix="/", logging_config=quiet)


def _with_threads(settings: Settings) -> Settings:
    """The settings with a number of threads: the replicas of a private cluster share this machine's cores equally."""
    threads = settings.threads or max(1, usable_cores() // settings.replicas)
    return settings.model_copy(update={"threads": threads})


def _serve_until_stopped(settings: Settings, store_url: str, daemons: Daemons, stop: StopFlag, say: Say) -> int:
    """Wait for a signal, or for the end of a process of Ray's that nothing replaces. Returns the exit code."""
    say(f"ready on {url(settings)}")
    say(f"see it in a browser: {url(settings)}/")
    for line in what_is_served(settings, store_url):
        say(line)
    while (ended := daemons.ended()) is None and not stop.asked:
        time.sleep(0.1)
    if ended is not None:
        reason = f"{ended}, a process of Ray's, has ended; the server stops, since nothing can replace it"
        as_configured(settings, say, logging.ERROR)(reason)
        close_proxy(settings.drain_seconds)
        return 1
    return drain(settings, say)


def _stop_early(settings: Settings, say: Say) -> int:
    """Stop after a signal during the start. Replicas answer before Serve reports that they do, so they may have
    accepted requests. Returns the exit code."""
    if replicas_run():
        return drain(settings, say)
    say("stopped before it was ready")
    return 1


def _new_token(folder: Path) -> Path:
    """Write a new token to a file. Ray runs code in the cluster only for holders of the token."""
    file = folder / "token"
    with open(file, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened:
        opened.write(secrets.token_hex(32))
    return file


def _let_workers_import_us() -> None:
    root = str(Path(__file__).resolve().parents[2])
    parts = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(parts))
