"""How `homes_keeper` is started, once for each HAProxy. Of the standard library alone, as HAProxy's start needs it."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

NAMESPACE = "KEN_NAMESPACE"
TROUBLE = "homes.trouble"
"""A file beside HAProxy's configuration: why it has no rules for homes; empty where it has."""

_KEEPER = "serving.launch.homes_keeper"
_LOCK = "homes.lock"
_POLL_SECONDS = 0.1
_URL, _SECRETS = "KEN_REDIS_URL", "KEN_SECRETS_DIR"


def start(configuration: Path, manager: int) -> None:
    """Start a keeper for this HAProxy, unless one is running that belongs to the same manager.

    The keeper is no child of this process, which becomes HAProxy and would not know of it.
    """
    if store_url(os.environ) is None or _kept_for(configuration.parent) == manager:
        return
    if (child := os.fork()) == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                command = [sys.executable, "-P", "-m", _KEEPER, str(configuration), str(manager)]
                os.execv(sys.executable, command)  # noqa: S606 - intended
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def store_url(environment: Mapping[str, str]) -> str | None:
    """The store's URL, from the environment or from a secret file."""
    if environment.get(_URL):
        return environment[_URL]
    folder = environment.get(_SECRETS)
    if folder:
        for file in Path(folder).glob("*"):
            if file.name.upper() == _URL:
                return file.read_text().strip() or None
    return None


def _kept_for(folder: Path) -> int | None:
    """The manager to which the running keeper belongs; None if none is running."""
    try:
        with open(folder / _LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or 0)
    except (OSError, ValueError):
        pass
    return None


@contextmanager
def alone(folder: Path, manager: int) -> Iterator[None]:
    """Within it, no other keeper runs for the same HAProxy. Waits for the end of one whose manager has ended.

    Raises:
        ProcessLookupError: another keeper runs for the same manager.
    """
    with open(os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        while _kept_for(folder) is not None:
            if _kept_for(folder) == manager:
                raise ProcessLookupError("another keeper runs for this HAProxy")
            time.sleep(_POLL_SECONDS)
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(manager))
        file.flush()
        yield
