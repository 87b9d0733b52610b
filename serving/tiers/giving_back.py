"""Giving memory back to the system after the base was read.

Decoding reads the base's file through its map, and makes and frees arrays of the size of a delta. glibc keeps what was
freed from the heap, unless it lies at the heap's end: four tasks of SmolLM2 left half a gigabyte.
"""

from __future__ import annotations

import ctypes
import threading

from ken_core import Checkpoint

_REST_SECONDS = 5.0


class GivingBack:
    """Gives memory back some seconds after the base was read, once for all reads of that time."""

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._due = self._closed = False
        base.files.when_read = self.soon

    def soon(self) -> None:
        """The base was read. May be called on any thread."""
        with self._lock:
            if self._due or self._closed:
                return
            timer = threading.Timer(_REST_SECONDS, self._run)
            timer.name, timer.daemon = "ken-giving-back", True
            try:
                timer.start()
            except RuntimeError:  # no thread is to be had; the next read tries again
                return
            self._timer, self._due = timer, True

    def now(self) -> None:
        """On the calling thread."""
        self._base.let_go()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)

    def close(self) -> None:
        """Nothing is given back from now on; waits for what is under way."""
        with self._lock:
            self._closed, timer = True, self._timer
        if timer is not None:
            timer.cancel()
            timer.join()

    def _run(self) -> None:
        with self._lock:
            self._due = False
        self.now()
