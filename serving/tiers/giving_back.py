"""Giving memory back to the system after tasks were loaded.

Decoding reads the base's file through its map, and makes and frees arrays of the size of a delta. glibc keeps what was
freed from the heap, unless it lies at the heap's end: four tasks of SmolLM2 left half a gigabyte.
"""

from __future__ import annotations

import ctypes
import threading

from ken_core.mapped import MappedFiles

_REST_SECONDS = 5.0


class GivingBack:
    """Gives memory back some seconds after a load, once for all loads of that time.

    Args:
        files: the base's.
    """

    def __init__(self, files: MappedFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False

    def soon(self) -> None:
        """Something was loaded."""
        with self._lock:
            if self._timer is not None or self._closed:
                return
            self._timer = threading.Timer(_REST_SECONDS, self._run)
            self._timer.name, self._timer.daemon = "ken-giving-back", True
            self._timer.start()

    def now(self) -> None:
        """On the calling thread."""
        self._files.let_go()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)

    def close(self) -> None:
        """Nothing is given back any more."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()

    def _run(self) -> None:
        with self._lock:
            self._timer = None
        self.now()
