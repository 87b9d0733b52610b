"""Which deltas a replica may load: if it has trusted keys, only deltas that one of these keys signed.

A signature counts as long as its key is trusted, so signatures are checked at each load. Signatures are kept beside a
delta's file, which saves a request to the store. If none of them is of a trusted key, the store is asked again.
"""

from __future__ import annotations

import logging
from pathlib import Path

from serving.errors import InvalidInputError, RefusedDeltaError, UntrustedDeltaError
from serving.security.signature_file import read_signatures
from serving.security.signatures import Signature, TrustedKeys
from serving.store import Store
from serving.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)


class SignatureCheck:
    """Decides which deltas may be loaded. Threads may share it."""

    def __init__(self, trusted: TrustedKeys, store: Store, metrics: Metrics) -> None:
        self._trusted = trusted
        self._store = store
        self._metrics = metrics
        self._refused: set[str] = set()

    def check(self, path: Path) -> tuple[Signature, ...]:
        """Check that a trusted key signed a delta. The delta itself is not read.

        Args:
            path: of the delta's file, named by its digest. The file need not exist yet.

        Returns:
            Signatures to keep beside the file; empty if the signatures that are there suffice.

        Raises:
            RefusedDeltaError: no trusted key signed the delta.
            StoreError: no signature on disk is of a trusted key, and the store cannot be asked.
        """
        digest = path.name
        if self._trusted.signer(digest, self._on_disk(path)) is not None:
            return ()
        found = self._store.signatures.of(digest)
        try:
            self._trusted.check(digest, found)
        except UntrustedDeltaError as error:
            raise self._refusal(digest, error) from error
        self._refused.discard(digest)
        return found

    def _on_disk(self, path: Path) -> tuple[Signature, ...]:
        try:
            return read_signatures(path)
        except InvalidInputError as error:
            _log.warning("%s; asking the store for the signatures", error)
            return ()

    def _refusal(self, digest: str, error: UntrustedDeltaError) -> RefusedDeltaError:
        self._metrics.refused_deltas.inc()
        if digest not in self._refused:
            self._refused.add(digest)
            _log.error("delta not loaded: %s", error)
        return RefusedDeltaError(str(error))
