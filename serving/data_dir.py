"""The folder for what outlives a process: the embedded store, fetched deltas, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def default_data_dir() -> Path:
    """``$XDG_DATA_HOME/ken``, by default ``~/.local/share/ken``."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "ken"
