"""Signatures of deltas in the store: a field a key in the delta's hash, so that they come and go with it."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from serving.security.signatures import Signature
from serving.store.deltas import Deltas

_FIELD = "signature:"


class Signatures(Deltas):
    """Who vouches for a delta. Whether that counts is up to who reads."""

    def signatures(self, digest: str) -> tuple[Signature, ...]:
        """A delta's signatures, unchecked, one a key; what is none is left out.

        Raises:
            StoreError: the store does not hold the delta.
        """
        key = self._delta(digest)
        with self._with:
            fields = self._client.hkeys(key)
            if not fields:
                raise self._missing(digest)
            signed = sorted(field for field in fields if field.startswith(_FIELD.encode()))
            values = self._client.hmget(key, signed) if signed else []
        return tuple(_readable(zip(signed, values, strict=True)))

    def _add_signatures(self, digest: str, signatures: Iterable[Signature]) -> None:
        """To a delta that the store holds, under a lease: the hash alone would make others believe it is whole."""
        fields = {_FIELD + s.key: s.signature for s in signatures}
        if fields:
            with self._with:
                self._client.hset(self._delta(digest), mapping=fields)


def _readable(fields: Iterable[tuple[bytes, bytes | None]]) -> Iterable[Signature]:
    for name, value in fields:
        try:
            yield Signature(key=name.decode().removeprefix(_FIELD), signature=(value or b"").decode())
        except (ValidationError, UnicodeDecodeError):
            continue
