"""Signatures of deltas: one field for each public key in the delta's own hash, so they are deleted with the delta."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from serving.security.signatures import Signature
from serving.store.connection import Connection
from serving.store.deltas import not_held

_FIELD = "signature:"


class Signatures:
    """The signatures kept with each delta. Readers decide which keys they trust."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def of(self, digest: str) -> tuple[Signature, ...]:
        """A delta's signatures, at most one for each public key. They are not verified; unreadable ones are left out.

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
        """Keep signatures with a delta. The caller holds a lease and knows that the store holds the delta.

        Otherwise this would make a hash that has signatures alone, and readers would take the delta for complete.
        """
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
