"""What a replica may load where it trusts only some: a delta that a trusted key signed, wherever its file lies.

A signature counts for as long as its key is trusted, so it is checked at each load; those beside the file save asking
the store, and are asked for again where they do not do.
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
    """Decides what may be loaded. Threads may share it."""

    def __init__(self, trusted: TrustedKeys, store: Store, metrics: Metrics) -> None:
        self._trusted = trusted
        self._store = store
        self._metrics = metrics
        self._refused: set[str] = set()

    def check(self, path: Path) -> tuple[Signature, ...]:
        """Let a delta pass that a trusted key signed; nothing of it is read.

        Args:
            path: of its file, which may not be there yet; its name is the digest.

        Returns:
            Signatures to keep beside the file; none where those that lie there do.

        Raises:
            RefusedDeltaError: no trusted key signed it.
            StoreError: the signatures on disk do not do, and the store gives none.
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
            _log.warning("%s; asking the store", error)
            return ()

    def _refusal(self, digest: str, error: UntrustedDeltaError) -> RefusedDeltaError:
        self._metrics.refused_deltas.inc()
        if digest not in self._refused:
            self._refused.add(digest)
            _log.error("not loaded: %s", error)
        return RefusedDeltaError(str(error))
