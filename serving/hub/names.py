"""Names on the Hub, of deltas' files in its repositories, and what may be shown of an address or a token. Pure."""

from __future__ import annotations

import re

from serving.hub.errors import HubError

_OWNED = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_USER = re.compile(r"(?<=://)[^/\s]*@")
_TOKEN = re.compile(r"[\x21-\x7e]+")
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


def without_user(text: str) -> str:
    """A text without the users and passwords of the URLs in it."""
    return _USER.sub("", text)


def check_token(token: str | None) -> None:
    """Raises `HubError` if no header can carry the token; the token is not in the message."""
    if token is not None and not _TOKEN.fullmatch(token):
        raise HubError(
            "the Hub's token (HF_TOKEN, or that of `hf auth login`) holds characters that no token has, such as "
            "spaces, line breaks or letters beyond ASCII; set it again"
        )
