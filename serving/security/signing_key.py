"""Private keys for signing deltas: PEM files (PKCS8, not encrypted) that only their owner may read."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from serving.errors import InvalidInputError


def create_signing_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and write it to a new file with mode 0600.

    Raises:
        InvalidInputError: the file exists already, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidInputError(f"{path} exists already, and an overwritten key is lost; choose another name") from None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}") from None
    return key


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read a key from its file.

    Raises:
        InvalidInputError: the file cannot be read, or holds no ed25519 private key.
    """
    try:
        found = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: the key is encrypted
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise InvalidInputError(
            f"{path} holds no ed25519 private key in PEM without a password; make one with `ken signing-key create`"
        )
    return found
