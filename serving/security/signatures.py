"""Signatures of deltas: what is signed, how it is checked, and whose count.

Signed with ed25519 (RFC 8032) is the sha256 that names a delta, after a text that sets it apart from whatever else the
key may sign. A signature can so be checked before a byte of the delta was read.
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
"""That may be sent along with one delta."""

_DOMAIN = b"ken-serve delta v1\0"
# base64 of 32 and of 64 bytes. The last letter carries two or four bits; that the others are 0 gives each but one form
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
"""Anybody can sign for these: 32 zeros, as a placeholder has them, are one."""


class Signature(BaseModel):
    """One key's signature of one delta, which it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[str, StringConstraints(pattern=f"^{_KEY}$")] = Field(
        description="ed25519 public key: base64 of its 32 bytes"
    )
    signature: Annotated[str, StringConstraints(pattern=f"^{_SIGNATURE}$")] = Field(description="base64 of 64 bytes")

    def is_of(self, digest: str) -> bool:
        """Whether the key's holder signed this delta."""
        # the settings and the client know this module, and most of their users check no signature
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(self.key))
        try:
            key.verify(base64.b64decode(self.signature), _message(digest))
        except InvalidSignature:
            return False
        return True

    def record(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return self.model_dump(mode="json")


def sign(key: Ed25519PrivateKey, digest: str) -> Signature:
    """Vouch for the delta of this sha256."""
    return Signature(key=public_key_of(key), signature=base64.b64encode(key.sign(_message(digest))).decode())


def public_key_of(key: Ed25519PrivateKey) -> str:
    """A private key's other half, as servers are told whom to trust."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def check_genuine(digest: str, signatures: Iterable[Signature]) -> None:
    """Raises `InvalidInputError` if a signature is not of this delta, whoever is trusted."""
    for signature in signatures:
        if not signature.is_of(digest):
            raise InvalidInputError(
                f"the signature by key {signature.key} is not of delta {digest}: the file or the signature was changed "
                "after it was signed; sign the file again"
            )


@dataclass(frozen=True)
class TrustedKeys:
    """Whose signatures count: a name for people, or the key itself, by public key."""

    names: Mapping[str, str]

    @classmethod
    def read(cls, texts: Sequence[str]) -> TrustedKeys:
        """Public keys as settings have them: base64 of the 32 bytes, with ``name=`` before it if wanted.

        Raises:
            ValueError: none, one of another form, one twice, or one that anybody can sign for.
        """
        if not texts:
            raise ValueError("found no key, and so nobody's deltas would be taken; expected at least one")
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
                raise ValueError(f"found {text!r}, a key that anybody can sign for; expected one somebody made")
            name = found["name"] or key
            if key in names or name in names.values():
                raise ValueError(f"found {text!r} and its name or its key once more; expected each once")
            names[key] = name
        return cls(names)

    def signer(self, digest: str, signatures: Iterable[Signature]) -> str | None:
        """The name of a trusted key that signed this delta; None where none did."""
        return next((self.names[s.key] for s in signatures if s.key in self.names and s.is_of(digest)), None)

    def check(self, digest: str, signatures: Sequence[Signature]) -> str:
        """The name of a trusted key that signed this delta.

        Raises:
            UntrustedDeltaError: none did; the message says what was found in its place.
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
