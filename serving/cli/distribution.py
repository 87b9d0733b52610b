"""Which distribution is installed: ``ken-serve``, or ``ken-serve-client``, the same files with fewer dependencies."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from ken_core.version import __version__

SERVER, CLIENT = "ken-serve", "ken-serve-client"


def installed() -> dict[str, str]:
    """The versions of the distributions that are installed, by their names."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in (SERVER, CLIENT):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def version_line(found: Mapping[str, str]) -> str:
    """What ``ken --version`` prints: the distributions with the version of the files that run, and Python's version."""
    return f"{' and '.join(found) or SERVER} {__version__}, Python {platform.python_version()}"


def contradiction(found: Mapping[str, str]) -> str | None:
    """Why the installed distributions cannot both be what runs, and what to do; None if all have the files' version."""
    if set(found.values()) <= {__version__}:
        return None
    told = " and ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"the files that run are of version {__version__}, but {told} "
        f"{'is' if len(found) == 1 else 'are'} installed; both distributions bring the same files, so keep one: "
        f"pip uninstall --yes {' '.join(found)}, then pip install {SERVER if SERVER in found else CLIENT}"
    )


def missing_module(command: str, module: str, found: Mapping[str, str]) -> str:
    """Why a command cannot run here, and what to do.

    Args:
        module: the module that was not found.
    """
    if SERVER in found:
        return f"`{command}` needs the module {module}, which is not installed; `pip check` says what is missing"
    return f"`{command}` needs {module}, which {CLIENT} does not bring; pip install {SERVER}"
