"""What Ray passes on from the replicas: their lines, and why one of them did not start."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any


def show_replicas_only() -> None:
    """Pass on the replicas' lines, without Ray's own chatter. Ray has no public switch for that."""
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
    """The replica's own message, which Serve hides in its status."""
    from ray import serve as ray_serve

    from serving.app import APP

    text = str(error)
    try:
        application = ray_serve.status().applications.get(APP)
        messages = [d.message for d in application.deployments.values() if d.message] if application else []
        text = messages[0] if messages else text
    except Exception:
        logging.getLogger(__name__).debug("no status", exc_info=True)
    ours = re.findall(r"^(?:serving\.errors|ken_core\.errors)\.\w+: (.+)$", text, re.MULTILINE)
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return str(ours[-1] if ours else lines[-1] if lines else repr(error))
