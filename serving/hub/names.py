"""Names on the Hub, and names of deltas' files in its repositories. Pure."""

from __future__ import annotations

import re

from serving.hub.failures import HubError

_OWNED = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DELTA = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}\.ken")


def hub_name(text: str) -> str | None:
    """The text, if it has the form of the name of a repository: ``owner/name``."""
    return text if _OWNED.fullmatch(text) else None


def check_repository(name: str) -> str:
    """Return the name of a repository, if it names its owner too.

    Raises:
        HubError: it has another form.
    """
    if hub_name(name) is None:
        raise HubError(f"found the repository {name!r}; expected owner/name")
    return name


def is_delta_file(name: str) -> bool:
    """Whether a path in a repository is that of a delta that can be pulled."""
    return bool(_DELTA.fullmatch(name))


def check_delta_file(name: str) -> str:
    """Return the name of a delta's file, if it is one that stays in its folder.

    Raises:
        HubError: it is a path, or has another form.
    """
    if not is_delta_file(name):
        raise HubError(
            f"found the file name {name!r}; expected letters, digits, '.', '_' or '-', the first a letter or digit, "
            "then .ken, and no folder"
        )
    return name
