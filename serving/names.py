"""Checks names and digests: only names that can stand in a key of the store and in a URL are valid."""

from __future__ import annotations

import re

from serving.errors import InvalidInputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_name(kind: str, name: str) -> str:
    """Return the name if it is valid.

    Args:
        kind: what is named, e.g. ``task``; for the message.

    Raises:
        InvalidInputError: the name is not 1 to 128 letters, digits, ``.``, ``_`` or ``-``, the first a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{kind} {name!r} is not usable: expected 1 to 128 letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    return name


def check_alias(name: str) -> str:
    """Return the name if it is valid for an alias of a task.

    Raises:
        InvalidInputError: as `check_name`; or the name looks like a digest and would hide the version with that digest.
    """
    if is_digest(name):
        raise InvalidInputError(f"alias {name!r} is not usable: 64 hexadecimal digits name a version; choose another")
    return check_name("alias", name)


def is_digest(name: str) -> bool:
    """Whether a name has the form of a delta's sha256: 64 hexadecimal digits in lower case."""
    return _DIGEST.fullmatch(name) is not None


def check_digest(digest: str) -> str:
    """Return the digest if it has the form of a delta's sha256; raises `InvalidInputError` if not."""
    if not is_digest(digest):
        raise InvalidInputError(f"{digest[:80]!r} is no digest: expected 64 hexadecimal digits in lower case")
    return digest
