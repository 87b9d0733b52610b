"""What a delta must pass before it becomes a version of a task: a trusted signature, and answering on this replica."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from serving.errors import NoRoomError
from serving.replica.fitness import Fitness
from serving.security.signatures import Signature, TrustedKeys, check_genuine
from serving.store import Store


class Vetting:
    """Vets deltas of unknown origin. Its methods block.

    Args:
        folder: for files that are fetched to be tried.
        trusted: keys of which one must have signed a delta; None: deltas need no signature.

    Attributes:
        fitness: tries a file.
    """

    def __init__(self, fitness: Fitness, store: Store, folder: Path, trusted: TrustedKeys | None) -> None:
        self.fitness = fitness
        self._store = store
        self._folder = folder
        self._trusted = trusted

    def check_signed(self, digest: str, sent: Sequence[Signature], kept: Callable[[], Sequence[Signature]]) -> None:
        """Check a delta's signatures, before any of its bytes are read.

        Args:
            sent: signatures that came with the request, all of which must be of this delta.
            kept: reads further signatures that count too; called only where a trusted key must have signed.

        Raises:
            InvalidInputError: a signature that was sent is not of this delta.
            UntrustedDeltaError: a trusted key must have signed it, and none did.
        """
        check_genuine(digest, sent)
        if self._trusted is not None:
            self._trusted.check(digest, (*sent, *kept()))

    def check_stored(self, digest: str) -> None:
        """Try a delta that the store holds, since it may have come there untried; once for each digest.

        Raises:
            InvalidInputError, OverloadedError, DeadlineError, UnavailableError: see `Fitness.check`.
            NoRoomError: the folder does not take the delta's file.
        """
        if self.fitness.found(digest):
            return
        path = self._folder / f".{digest}.{uuid.uuid4().hex}.partial"
        try:
            try:
                self._store.deltas.fetch(digest, path)
            except OSError as error:
                raise NoRoomError(
                    f"delta {digest} cannot be tried, for its file cannot be written: {error.strerror or error}; "
                    "make room on the server's disk"
                ) from error
            self.fitness.check(path)
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
