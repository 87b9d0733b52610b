"""Which names and digests are fit for a key of the store and for a URL."""

from __future__ import annotations

import re

from serving.errors import InvalidInputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_name(kind: str, name: str) -> str:
    """Return a name, e.g. a task's or an alias's, that is fit for a key and a URL.

    Raises:
        InvalidInputError: letters, digits, ``.``, ``_``, ``-`` only, at most 128, the first a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{kind} {name!r} is not usable: expected 1 to 128 letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    return name


def check_alias(name: str) -> str:
    """Return a name that a task's alias may have.

    Raises:
        InvalidInputError: as `check_name`; or it looks like a digest, which would hide the version of that digest.
    """
    if is_digest(name):
        raise InvalidInputError(f"alias {name!r} is not usable: 64 hexadecimal digits name a version; choose another")
    return check_name("alias", name)


def is_digest(name: str) -> bool:
    """Whether it has the form of a delta's sha256: 64 hexadecimal digits in lower case."""
    return _DIGEST.fullmatch(name) is not None


def check_digest(digest: str) -> str:
    """Return what is a delta's sha256 as 64 hexadecimal digits; raises `InvalidInputError`."""
    if not is_digest(digest):
        raise InvalidInputError(f"{digest[:80]!r} is no digest: expected 64 hexadecimal digits in lower case")
    return digest
