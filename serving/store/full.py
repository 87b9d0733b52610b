"""What is said where the store has no room for a delta."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import OutOfMemoryError

from serving.errors import StoreError, StoreFullError


@contextmanager
def full_store(where: str, what: str, needed: int) -> Iterator[None]:
    """Turn the store's refusal to take more into an error that says what to do.

    Args:
        where: the store, as `Connection.where` names it.
        what: is being written.
        needed: bytes of it.

    Raises:
        StoreFullError: the store has reached its ``maxmemory``.
    """
    try:
        yield
    except StoreError as error:
        if isinstance(error, StoreFullError) or not isinstance(error.__cause__, OutOfMemoryError):
            raise
        raise StoreFullError(
            f"the store at {where} is full: it has no room for {what}, which needs {needed / 1e6:.1f} MB. Delete "
            "versions with `ken rm` and free their bytes with `ken gc`, or raise the store's maxmemory; then try again"
        ) from error.__cause__
