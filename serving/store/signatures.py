"""Signatures of deltas in the store: a field a key in the delta's hash, so that they come and go with it."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from serving.security.signatures import Signature
from serving.store.connection import Connection
from serving.store.deltas import not_held

_FIELD = "signature:"


class Signatures:
    """Who vouches for a delta. Whether that counts is up to who reads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def of(self, digest: str) -> tuple[Signature, ...]:
        """A delta's signatures, unchecked, one a key; what is none is left out.

        Raises:
            StoreError: the store does not hold the delta.
        """
        key, client = self._connection.digest_key("delta", digest), self._connection.client
        with self._connection.store_errors:
            fields = client.hkeys(key)
            if not fields:
                raise not_held(digest, self._connection.where)
            signed = sorted(field for field in fields if field.startswith(_FIELD.encode()))
            values = client.hmget(key, signed) if signed else []
        return tuple(_readable(zip(signed, values, strict=True)))

    def add(self, digest: str, signatures: Iterable[Signature]) -> None:
        """To a delta that the store holds, under a lease: the hash alone would make others believe it is whole."""
        fields = {_FIELD + s.key: s.signature for s in signatures}
        if fields:
            with self._connection.store_errors:
                self._connection.client.hset(self._connection.digest_key("delta", digest), mapping=fields)


def _readable(fields: Iterable[tuple[bytes, bytes | None]]) -> Iterable[Signature]:
    for name, value in fields:
        try:
            yield Signature(key=name.decode().removeprefix(_FIELD), signature=(value or b"").decode())
        except (ValidationError, UnicodeDecodeError):
            continue
