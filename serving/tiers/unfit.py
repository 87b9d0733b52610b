"""Deltas that can never be served here. They are remembered, so that no delta is fetched and decoded in vain twice."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from ken_core.errors import BaseMismatchError, ConfigMismatchError, DeltaFormatError
from serving.errors import UnfitDeltaError, UnmergeableError, UnsupportedKindError

_log = logging.getLogger(__name__)
_MOST = 4096
_FAULTS = (DeltaFormatError, BaseMismatchError, ConfigMismatchError)
"""Errors of a delta's content. They last, because the digest names the content; errors of the store or device pass."""

Reason = UnfitDeltaError | UnmergeableError | UnsupportedKindError


class Unfit:
    """The reasons why deltas cannot be served, by digest; the latest few thousand. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: OrderedDict[str, Reason] = OrderedDict()

    def refuse(self, digest: str) -> None:
        """Raise the error that is remembered for a delta, if there is one."""
        with self._lock:
            known = self._reasons.get(digest)
        if known is not None:
            raise type(known)(str(known))

    @contextmanager
    def noting(self, digest: str) -> Iterator[None]:
        """Remember the errors that a delta's content raises in this block.

        Raises:
            UnfitDeltaError: in place of an error of the delta's content.
            UnsupportedKindError, UnmergeableError: as it was raised in the block.
        """
        try:
            yield
        except UnmergeableError as error:  # a request's doing, and nothing for the log
            self._remember(digest, error)
            raise
        except UnsupportedKindError as error:
            self._note(digest, error)
            raise
        except _FAULTS as error:
            unfit = UnfitDeltaError(f"delta {digest} cannot be served: {error}")
            if not isinstance(error.__cause__, MemoryError):  # too little memory may be a matter of the moment
                self._note(digest, unfit)
            raise unfit from error

    def _note(self, digest: str, error: Reason) -> None:
        _log.error("%s", str(error))  # the error itself would keep its traceback, and with it the delta's file
        self._remember(digest, error)

    def _remember(self, digest: str, error: Reason) -> None:
        with self._lock:
            self._reasons[digest] = type(error)(str(error))  # a new error, for the same reason
            while len(self._reasons) > _MOST:
                self._reasons.popitem(last=False)
