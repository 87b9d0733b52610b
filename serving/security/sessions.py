"""Sessions of browsers: an API key, sealed into a token that a cookie holds for an hour at most.

A token is ``<key id>.<end>.<session>.<sealed key>``. The key is sealed (AES-GCM) under a secret that every replica
derives from the stored hash of the key. So nothing is stored for a session, each replica can open it, and it ends with
its key. Whoever reads the hashes in the store cannot make a token, since a token holds the key itself. Whoever takes a
token out of a browser has neither the key nor a session that lasts longer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SECONDS = 3600
"""How long a token is valid. Renewed, a session goes on with another token."""

_FORM = re.compile(r"([0-9a-z-]{1,32})\.([0-9]{1,12})\.([0-9a-f]{32})\.([A-Za-z0-9_-]{32,4000})")
_NONCE_BYTES = 12
_SEALING, _CSRF = b"ken-serve session", b"ken-serve csrf"


@dataclass(frozen=True)
class Session:
    """A session that a key's holder has begun.

    Attributes:
        token: what the cookie holds.
        api_key: the key. It is still to be checked.
        id: names the session; it stays when the session is renewed.
        expires: unix seconds at which the token ends.
        csrf: what requests that change something send in a header. Only pages of this server can read it.
    """

    token: str
    api_key: str
    id: str
    expires: int
    csrf: str

    def is_past_half(self, now: float) -> bool:
        """Whether it is time for another token."""
        return self.expires - now < SECONDS / 2


def begun(api_key: str, key_id: str, key_hash: str, now: float, id: str | None = None) -> Session:
    """A session that lasts for `SECONDS`.

    Args:
        api_key: the key.
        key_id: names the key, so that its hash is found.
        key_hash: of the key, as it is stored.
        now: unix seconds.
        id: of the session that goes on; None: a new one begins.
    """
    id, expires = id or secrets.token_hex(16), int(now) + SECONDS
    public = f"{key_id}.{expires}.{id}"
    nonce = secrets.token_bytes(_NONCE_BYTES)
    hidden = nonce + AESGCM(_derived(key_hash, _SEALING)).encrypt(nonce, api_key.encode(), public.encode())
    token = f"{public}.{base64.urlsafe_b64encode(hidden).decode().rstrip('=')}"
    return Session(token, api_key, id, expires, _csrf(key_id, key_hash, id))


def opened(token: str, hash_of: Callable[[str], str | None], now: float) -> Session | None:
    """The session of a token; None if the token is none, has ended, or was changed.

    Args:
        hash_of: the stored hash of a key by the key's id; None: there is no such key any more.
        now: unix seconds.
    """
    parts = _FORM.fullmatch(token)
    if parts is None:
        return None
    key_id, expires, id, text = parts.groups()
    key_hash = hash_of(key_id)
    if key_hash is None or int(expires) <= now:
        return None
    try:
        hidden = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        public = f"{key_id}.{expires}.{id}".encode()
        shown = AESGCM(_derived(key_hash, _SEALING)).decrypt(hidden[:_NONCE_BYTES], hidden[_NONCE_BYTES:], public)
    except (InvalidTag, binascii.Error):
        return None
    return Session(token, shown.decode(), id, int(expires), _csrf(key_id, key_hash, id))


def _csrf(key_id: str, key_hash: str, id: str) -> str:
    return hmac.new(_derived(key_hash, _CSRF), f"{key_id}.{id}".encode(), hashlib.sha256).hexdigest()


def _derived(key_hash: str, label: bytes) -> bytes:
    """A secret of 32 bytes for one purpose (HKDF, RFC 5869)."""
    return HKDF(SHA256(), 32, salt=None, info=label).derive(bytes.fromhex(key_hash))
