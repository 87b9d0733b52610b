"""What the replicas say by way of Ray: their log lines, and the reason why one of them did not start."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

from serving.errors import StartError

_REFUSED_ADDRESS = re.compile(r"cannot bind socket \((?P<reason>[^)]+)\) for \[(?P<address>\S+)\]")
"""What HAProxy says of an address that was free when the server's start looked at it."""


def show_replicas_only() -> None:
    """Print the replicas' log lines and no other lines of Ray. Ray has no public setting for this."""
    try:
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        dispatcher.remove_handler("ray_print_logs")
        dispatcher.add_handler("ken", _print_replica_lines)
    except (ImportError, AttributeError):
        return


def _print_replica_lines(data: dict[str, Any]) -> None:
    if str(data.get("actor_name") or "").startswith("ServeReplica:"):
        for line in data["lines"]:
            print(line, file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """The error message of the replica that failed to start, which Serve has only in its status, or of HAProxy. A
    `StartError` comes from no replica and says all by itself."""
    if isinstance(error, StartError):
        return str(error)
    if refused := _REFUSED_ADDRESS.search(str(error)):
        return f"HAProxy cannot listen on {refused['address']} ({refused['reason']}); start again, or on another --port"
    from ray import serve as ray_serve

    from serving.app import APP

    text = str(error)
    try:
        application = ray_serve.status().applications.get(APP)
        messages = [d.message for d in application.deployments.values() if d.message] if application else []
        text = messages[0] if messages else text
    except Exception:
        logging.getLogger(__name__).debug("Serve reports no status", exc_info=True)
    ours = re.findall(r"^(?:serving\.errors|ken_core\.errors)\.\w+: (.+)$", text, re.MULTILINE)
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return str(ours[-1] if ours else lines[-1] if lines else repr(error))
