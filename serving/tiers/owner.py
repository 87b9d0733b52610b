"""The thread that owns the weights, as the tiers see it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

OnOwner = Callable[[Callable[[], None]], Future[None]]
"""Runs something on a thread that has the weights alone, between two batches."""
