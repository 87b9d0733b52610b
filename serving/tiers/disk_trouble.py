"""Whether the disk takes fetched deltas. A write that fails begins the trouble, and one that succeeds ends it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
import uuid
from pathlib import Path

from ken_core.errors import OutputError

_log = logging.getLogger(__name__)
_OF_THE_PROCESS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN}
"""Errors that say nothing about the disk."""
_PROBE_BYTES = 4096
_PROBE_SECONDS = 5.0
"""Least time between two probes."""


class DiskTrouble:
    """Why a folder takes no files at present. The log says once when that changes. Threads may share it.

    Attributes:
        reason: None: the folder takes files, as far as is known.
    """

    def __init__(self, folder: Path) -> None:
        self.reason: str | None = None
        self._folder = folder
        self._needed = 0
        self._lock = threading.Lock()
        self._tried = 0.0

    def begin(self, error: OSError | OutputError, needed: int = 0) -> None:
        """Note that a file could not be written, if that is the disk's fault.

        Args:
            needed: bytes of the file.
        """
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _OF_THE_PROCESS:
            return
        with self._lock:
            began = self.reason is None
            self.reason, self._needed, self._tried = str(error), needed, time.monotonic()
        if began:
            _log.error("fetched deltas cannot be kept on disk, and are read from memory instead: %s", error)

    def end(self) -> None:
        with self._lock:
            ended, self.reason = self.reason is not None, None
        if ended:
            _log.info("fetched deltas are kept on disk again")

    def lasts(self) -> bool:
        """Whether there is trouble; found out by a small file, since perhaps no delta is fetched for a long time."""
        with self._lock:
            if self.reason is None or time.monotonic() - self._tried < _PROBE_SECONDS:
                return self.reason is not None
            self._tried = time.monotonic()
        if self._probe():
            self.end()
        return self.reason is not None

    def _probe(self) -> bool:
        """Whether the folder takes a small file, and has room for the delta that it did not take."""
        path = self._folder / f".{uuid.uuid4().hex}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("wb") as probe:
                    probe.write(bytes(_PROBE_BYTES))
                    probe.flush()
                    os.fsync(probe.fileno())
                return shutil.disk_usage(self._folder).free >= self._needed
            finally:
                path.unlink(missing_ok=True)
        except OSError:
            return False
