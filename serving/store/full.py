"""What is said where the store has no room for a delta."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import OutOfMemoryError

from serving.errors import StoreFullError


@contextmanager
def full_store(where: str, what: str, needed: int) -> Iterator[None]:
    """Say what there was no room for, where the store is full.

    Args:
        where: the store, as `Connection.where` names it.
        what: is being written.
        needed: bytes of it.

    Raises:
        StoreFullError: the store has reached its ``maxmemory``.
    """
    try:
        yield
    except StoreFullError as error:
        if not isinstance(error.__cause__, OutOfMemoryError):  # it already says what is being written
            raise
        raise StoreFullError(
            f"the store at {where} is full: it has no room for {what}, which needs {needed / 1e6:.1f} MB. Delete "
            "versions with `ken rm` and free their bytes with `ken gc`, or raise the store's maxmemory; then try again"
        ) from error
