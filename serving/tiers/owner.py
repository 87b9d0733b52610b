"""The thread that owns the weights, as the tiers see it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

OnOwner = Callable[[Callable[[], None]], Future[None]]
"""Runs something on the thread that owns the weights, between two batches."""
