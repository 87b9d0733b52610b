"""Which deltas a caller may publish: those whose bytes the caller has, not those whose digest the caller knows.

A key of every task sees all versions anyway, so such keys share uploads and need not send what the store holds. A key
of some tasks may publish a delta whose chunks it sent itself, or one that is a version of a task that it sees. About
any other digest it gets the same answers as about a digest that nobody ever uploaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.security.keys import Principal
from serving.security.signatures import Signature
from serving.service import Service
from serving.store import Upload


class Possession:
    """Uploads, as far as they count for a caller."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    def put_chunk(self, who: Principal, digest: str, index: int, data: bytes) -> None:
        """Keep a chunk. Raises as `Uploads.put_chunk` does."""
        if self._has(who, digest):
            self._store.uploads.put_chunk(digest, index, data)
        else:
            self._store.own_uploads.put_chunk(who.name, digest, index, data)

    def uploaded(self, who: Principal, digest: str) -> Upload:
        """How much of an upload has arrived. Raises as `Uploads.progress` does."""
        if self._has(who, digest):
            return self._store.uploads.progress(digest)
        return self._store.own_uploads.progress(who.name, digest)

    def take(self, who: Principal, digest: str, signatures: Sequence[Signature]) -> None:
        """Vet a delta and move it from the uploads to the store, so that it can become a version.

        Args:
            signatures: those that came with the request.

        Raises:
            InvalidInputError: chunks are missing, the delta cannot be served here, or a signature is not of this delta.
            UntrustedDeltaError: a trusted key must have signed the delta, and none did.
        """
        vetting, store, folder = self._service.vetting, self._store, self._service.cache.files.folder
        if self._has(who, digest):
            vetting.check_signed(
                digest, signatures, lambda: store.signatures.of(digest) if store.deltas.has(digest) else ()
            )
            store.uploads.commit(digest, vetting.fitness.check, folder)
            vetting.check_stored(digest)  # it may have come straight to the store, where nothing is tried
        else:
            vetting.check_signed(digest, signatures, lambda: ())
            store.own_uploads.commit(who.name, digest, vetting.fitness.check, folder)

    def _has(self, who: Principal, digest: str) -> bool:
        """Whether the store's deltas and others' chunks count for a caller. The store is asked only if they may."""
        if who.sees_every_task:
            return True
        tasks = self._service.table.current.tasks
        seen = any(digest in task.versions for name, task in tasks.items() if who.sees(name))
        return seen and self._store.deltas.has(digest)
