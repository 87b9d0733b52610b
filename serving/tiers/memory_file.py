"""A file in memory, for code that reads a file by its path where no disk takes one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO


class MemoryFile:
    """A file that is gone when it is closed. On Linux it takes memory only; elsewhere it is in the folder of temporary
    files.

    Attributes:
        stream: to write it.
        path: to read it, in this process only. Nothing is there once the file is closed.

    Raises:
        OSError: there is no room for it, or no file descriptor.
    """

    def __init__(self, name: str) -> None:
        self.stream: BinaryIO
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create(name)
            self.stream = os.fdopen(descriptor, "wb")
            self.path = Path(f"/proc/self/fd/{descriptor}")
        else:
            self.stream = tempfile.NamedTemporaryFile(prefix=f"{name}.")  # type: ignore[assignment]  # noqa: SIM115
            self.path = Path(self.stream.name)

    def close(self) -> None:
        self.stream.close()
