"""The steps of a stop: admit no further requests (503 with Retry-After), let accepted requests finish, close the proxy,
end the cluster.

Each step has a time limit, since any of Ray's processes may be dead, and calls of it then never return. What a step
leaves running, `supervisor` ends.
"""

from __future__ import annotations

import logging
import signal
from contextlib import suppress

import psutil

from serving.config import Settings
from serving.launch.announcing import Say, as_configured
from serving.launch.bounded import within

_ANSWER_SECONDS, _END_SECONDS, _KILL_SECONDS = 10.0, 10.0, 5.0
"""For an answer of Ray's processes, for their end, and for the end of those that are left."""


def stop_seconds(settings: Settings) -> float:
    """The most seconds that all steps take together, one after another."""
    return settings.drain_seconds + 2 * _ANSWER_SECONDS + _END_SECONDS + _KILL_SECONDS


def replicas_run() -> bool:
    """Whether a replica answers; False if Ray does not say."""
    try:
        return within(_ANSWER_SECONDS, _some_replica_runs)
    except Exception:
        return False


def _some_replica_runs() -> bool:
    import ray

    if not ray.is_initialized():
        return False
    from ray import serve as ray_serve

    from serving.app import APP

    application = ray_serve.status().applications.get(APP)
    deployments = application.deployments.values() if application else ()
    return any(state == "RUNNING" for deployment in deployments for state in deployment.replica_states)


def drain(settings: Settings, say: Say) -> int:
    """Admit no further requests, and let accepted ones finish. Returns the exit code."""
    seconds = settings.drain_seconds
    say(f"stopping: letting accepted requests finish, at most {seconds:g} s")
    try:
        cut = within(seconds + _ANSWER_SECONDS, lambda: _unanswered(seconds))
    except Exception as error:
        as_configured(settings, say, logging.ERROR)(f"stopped; replicas were not asked to finish ({error!r})")
        return 1
    say("stopped" if not cut else f"stopped; {cut} requests were cut off after {seconds:g} s")
    return 0


def _unanswered(seconds: float) -> int:
    """Have every replica finish, and return how many requests none has answered after `seconds`."""
    from ray import serve as ray_serve

    from serving.app import APP

    handle = ray_serve.get_app_handle(APP)
    return sum(handle.broadcast("drain", seconds).results(timeout_s=seconds + _ANSWER_SECONDS))


def end_cluster() -> None:
    """End the cluster. The application is not deleted first: the proxy would answer 404 until the end."""
    close_proxy(0)
    try:
        import ray

        within(_END_SECONDS, ray.shutdown)
    except Exception:
        logging.getLogger(__name__).debug("ending the cluster failed; the supervisor ends it", exc_info=True)


def close_proxy(seconds: float) -> None:
    """Stop HAProxy softly: it stops listening, so that late clients are refused at once and wait for no answer. Wait
    until it has passed on the answers to accepted requests, at most `seconds`."""
    proxies = [process for process in psutil.Process().children(recursive=True) if _is_haproxy(process)]
    for process in proxies:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGUSR1)
    psutil.wait_procs(proxies, seconds)


def _is_haproxy(process: psutil.Process) -> bool:
    try:
        return process.name() == "haproxy"
    except psutil.Error:
        return False
