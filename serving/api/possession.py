"""What somebody may publish: what they have themselves, not whatever they know the digest of.

A key of every task sees all versions anyway: uploads are shared between such keys, and what the store holds need not be
sent. To a key of some tasks only its own chunks count, and a delta that is a version of a task it sees. What it is told
of any other digest is what it would be told of one that nobody ever uploaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.security.keys import Principal
from serving.security.signatures import Signature
from serving.service import Service
from serving.store import Upload


class Possession:
    """Uploads, as far as they count for who asks."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    def put_chunk(self, who: Principal, digest: str, index: int, data: bytes) -> None:
        """Keep a chunk; raises as `Uploads.put_chunk` does."""
        if self._has(who, digest):
            self._store.uploads.put_chunk(digest, index, data)
        else:
            self._store.own_uploads.put_chunk(who.name, digest, index, data)

    def uploaded(self, who: Principal, digest: str) -> Upload:
        """How far an upload has come; raises as `Uploads.progress` does."""
        if self._has(who, digest):
            return self._store.uploads.progress(digest)
        return self._store.own_uploads.progress(who.name, digest)

    def take(self, who: Principal, digest: str, signatures: Sequence[Signature]) -> None:
        """See that the store holds a delta whole, fit to serve and, where it must be, signed: ready to be a version.

        Args:
            signatures: those sent along.

        Raises:
            InvalidInputError: not all of it was uploaded, it cannot be served here, or a signature is not its own.
            UntrustedDeltaError: no trusted key signed it, where such keys are set.
        """
        service, store, folder = self._service, self._store, self._service.cache.files.folder
        if self._has(who, digest):
            service.check_signed(
                digest, signatures, lambda: store.signatures.of(digest) if store.deltas.has(digest) else ()
            )
            store.uploads.commit(digest, service.check_delta, folder)
            service.check_stored(digest)  # it may have come straight to the store, where nothing is tried
        else:
            service.check_signed(digest, signatures, lambda: ())
            store.own_uploads.commit(who.name, digest, service.check_delta, folder)

    def _has(self, who: Principal, digest: str) -> bool:
        """Whether what the store holds, or others have sent, may count. It is looked up only where it may."""
        if who.sees_every_task:
            return True
        tasks = self._service.table.current.tasks
        seen = any(digest in task.versions for name, task in tasks.items() if who.sees(name))
        return seen and self._store.deltas.has(digest)
