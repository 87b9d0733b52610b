"""Deltas that can never be served here, remembered: nobody fetches and decodes them again to find out the same."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from ken_core.errors import BaseMismatchError, ConfigMismatchError, DeltaFormatError
from serving.errors import UnfitDeltaError, UnsupportedKindError

_log = logging.getLogger(__name__)
_MOST = 4096
_FAULTS = (DeltaFormatError, BaseMismatchError, ConfigMismatchError)
"""Of the delta's content, which its digest names: they do not pass. Those of the store and of the device do."""


class Unfit:
    """Reasons by digest, the latest few thousand. Callable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: OrderedDict[str, UnfitDeltaError | UnsupportedKindError] = OrderedDict()

    def refuse(self, digest: str) -> None:
        """Raise what was found out about a delta, if anything was."""
        with self._lock:
            known = self._reasons.get(digest)
        if known is not None:
            raise type(known)(str(known))

    @contextmanager
    def noting(self, digest: str) -> Iterator[None]:
        """Remember what is found to be wrong with a delta's content.

        Raises:
            UnfitDeltaError: in the place of an error that says so.
        """
        try:
            yield
        except UnsupportedKindError as error:
            self._note(digest, error)
            raise
        except _FAULTS as error:
            unfit = UnfitDeltaError(f"delta {digest} cannot be served: {error}")
            if not isinstance(error.__cause__, MemoryError):  # which may be this moment's fault
                self._note(digest, unfit)
            raise unfit from error

    def _note(self, digest: str, error: UnfitDeltaError | UnsupportedKindError) -> None:
        _log.error("%s", error)
        with self._lock:
            self._reasons[digest] = error
            while len(self._reasons) > _MOST:
                self._reasons.popitem(last=False)
