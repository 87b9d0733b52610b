"""Signatures of deltas: what is signed, how a signature is checked, and which keys are trusted.

A signature (ed25519, RFC 8032) covers the sha256 that names a delta, after a prefix that no other use of the key has.
It can therefore be checked before a byte of the delta is read.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from serving.errors import InvalidInputError, UntrustedDeltaError
from serving.names import check_digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST_SIGNATURES = 8
"""Most signatures that may be sent with one delta."""

_DOMAIN = b"ken-serve delta v1\0"
# Base64 of 32 and of 64 bytes. The last letter carries 4 or 2 bits of data. Its other bits must be 0, so that each
# value has only one form.
_KEY = r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
_SIGNATURE = r"[A-Za-z0-9+/]{85}[AQgw]=="
_TRUSTED = re.compile(rf"(?:(?P<name>[A-Za-z0-9][A-Za-z0-9_.@ -]{{0,63}})=)?(?P<key>{_KEY})")
_SIGN_BIT = 1 << 255
_FIELD = 2**255 - 19
_POINTS_OF_SMALL_ORDER = {
    *(0, 1, _FIELD - 1, _FIELD, _FIELD + 1),
    int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
    int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
}
"""Public keys that anybody can sign for. A placeholder of 32 zero bytes is one of them."""


class Signature(BaseModel):
    """The signature of one delta by one key. It does not say which delta it is of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[str, StringConstraints(pattern=f"^{_KEY}$")] = Field(
        description="ed25519 public key: base64 of its 32 bytes"
    )
    signature: Annotated[str, StringConstraints(pattern=f"^{_SIGNATURE}$")] = Field(description="base64 of 64 bytes")

    def is_of(self, digest: str) -> bool:
        """Whether this is a signature of the delta with this digest."""
        # imported late: the settings and the client import this module, and most of their users check no signature
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(self.key))
        try:
            key.verify(base64.b64decode(self.signature), _message(digest))
        except InvalidSignature:
            return False
        return True

    def record(self) -> dict[str, Any]:
        """The signature as plain data, fit for JSON."""
        return self.model_dump(mode="json")


def sign(key: Ed25519PrivateKey, digest: str) -> Signature:
    """Sign the delta with this digest."""
    return Signature(key=public_key_of(key), signature=base64.b64encode(key.sign(_message(digest))).decode())


def public_key_of(key: Ed25519PrivateKey) -> str:
    """The public key of a private key: base64 of its 32 bytes, as the setting `trusted_keys` takes it."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def check_genuine(digest: str, signatures: Iterable[Signature]) -> None:
    """Raises `InvalidInputError` if a signature is not of this delta, whether or not its key is trusted."""
    for signature in signatures:
        if not signature.is_of(digest):
            raise InvalidInputError(
                f"the signature by key {signature.key} is not of delta {digest}: the file or the signature was changed "
                "after it was signed; sign the file again"
            )


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose signatures count.

    Attributes:
        names: a name for people by public key; the key itself if it was given no name.
    """

    names: Mapping[str, str]

    @classmethod
    def read(cls, texts: Sequence[str]) -> TrustedKeys:
        """Read public keys as the settings give them: base64 of the 32 bytes, optionally after ``name=``.

        Raises:
            ValueError: there is no key, a key is malformed or given twice, or anybody can sign for it.
        """
        if not texts:
            raise ValueError("found no key, so that no delta would be accepted; expected at least one")
        names: dict[str, str] = {}
        for text in texts:
            found = _TRUSTED.fullmatch(text)
            if found is None:
                raise ValueError(
                    f"found {text[:80]!r}, expected an ed25519 public key as `ken signing-key create` prints it, "
                    "base64 of 32 bytes, or name= and such a key"
                )
            key = found["key"]
            if int.from_bytes(base64.b64decode(key), "little") % _SIGN_BIT in _POINTS_OF_SMALL_ORDER:
                raise ValueError(
                    f"found {text!r}, a key that anybody can sign for; make one with `ken signing-key create`"
                )
            name = found["name"] or key
            if key in names or name in names.values():
                raise ValueError(f"found the name or the key of {text!r} twice; expected each once")
            names[key] = name
        return cls(names)

    def signer(self, digest: str, signatures: Iterable[Signature]) -> str | None:
        """The name of a trusted key that signed this delta; None if no trusted key did."""
        return next((self.names[s.key] for s in signatures if s.key in self.names and s.is_of(digest)), None)

    def check(self, digest: str, signatures: Sequence[Signature]) -> str:
        """The name of a trusted key that signed this delta.

        Raises:
            UntrustedDeltaError: no trusted key signed it; the message says which signatures were found.
        """
        signer = self.signer(check_digest(digest), signatures)
        if signer is None:
            raise UntrustedDeltaError(
                f"delta {digest} {self._shortcoming(signatures)}; sign its file with the key of "
                f"{' or '.join(sorted(self.names.values()))} (`ken sign`), and publish it once more"
            )
        return signer

    def _shortcoming(self, signatures: Sequence[Signature]) -> str:
        if not signatures:
            return "is not signed"
        false = [self.names[s.key] for s in signatures if s.key in self.names]
        if false:
            return f"has a signature by {', '.join(false)} that is not of this delta"
        return f"is signed by keys that are not trusted here: {', '.join(s.key for s in signatures)}"


def _message(digest: str) -> bytes:
    return _DOMAIN + bytes.fromhex(check_digest(digest))
