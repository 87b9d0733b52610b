"""The public keys that a command trusts, and the check that one of them signed a delta file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import typer

if TYPE_CHECKING:
    from serving.security.signatures import TrustedKeys


def trusted_keys_of(given: list[str] | None) -> TrustedKeys | None:
    """The keys given with the option, else those in KEN_TRUSTED_KEYS, which servers read too; None without either."""
    from serving.security.signatures import TrustedKeys

    where, texts = "--trusted-keys", given
    if not texts:
        where, text = "KEN_TRUSTED_KEYS", os.environ.get("KEN_TRUSTED_KEYS")
        if text is None:
            return None
        try:
            texts = orjson.loads(text)
        except orjson.JSONDecodeError:
            texts = None
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise typer.BadParameter(f"found {text[:80]!r}; expected a JSON list of public keys", param_hint=where)
    try:
        return TrustedKeys.read(texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=where) from None


def check_signed(file: Path, trusted: TrustedKeys) -> str:
    """A line that names a delta file's digest and the trusted key that signed it, by the signatures beside the file.

    Raises:
        InvalidInputError: the file or its signatures cannot be read.
        UntrustedDeltaError: no trusted key signed the delta.
    """
    from serving.errors import InvalidInputError
    from serving.security.signature_file import read_signatures

    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from None
    return f"delta {digest}, signed by {trusted.check(digest, read_signatures(file))}"
