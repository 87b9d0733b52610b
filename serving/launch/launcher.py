"""``ken serve``: checks the settings, then runs a private Ray cluster until it is told to stop.

Nothing here imports torch.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from serving.config import Settings
from serving.launch.announcing import Say, as_configured
from serving.launch.checks import check_address, check_base, check_keys, check_store, check_tls, choose_proxy
from serving.launch.cluster import run_cluster
from serving.launch.stopping import stop_seconds
from serving.launch.supervisor import supervise
from serving.store.embedded import embedded_store
from serving.telemetry.logs import chosen_format, configure


def serve(settings: Settings, say: Say) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    Args:
        say: shows one line to the person at the terminal.

    Raises:
        StartError: a check failed before anything was started: the port is in use, there is no base, no store, or no
            key although other machines can reach the server.
    """
    settings = settings.model_copy(update={"log_format": chosen_format(settings)})
    configure(settings)
    say = as_configured(settings, say, logging.INFO)
    check_address(settings)
    check_tls(settings)
    check_base(settings.base)
    haproxy = choose_proxy(settings, say)
    with ExitStack() as stack:
        store_url = settings.redis_secret or stack.enter_context(embedded_store(settings.data_dir))
        check_store(store_url, settings, say)
        check_keys(store_url, settings)
        folder = Path(stack.enter_context(_private_folder()))
        run = partial(run_cluster, settings, haproxy, store_url, folder, say)
        return supervise(run, stop_seconds(settings), clean_up=stack.close)


@contextmanager
def _private_folder() -> Iterator[str]:
    """A new folder with a short path: Ray and HAProxy put sockets deep below it, whose paths are limited in length."""
    folder = tempfile.mkdtemp(prefix="ken", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
