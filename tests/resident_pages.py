"""How much of a mapped file a process holds in memory."""

from __future__ import annotations

import re
from pathlib import Path


def bytes_in_memory(path: Path) -> int:
    """Of this process's maps of a file."""
    found = 0
    within = False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            within = line.endswith(f" {path}")
        elif within and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
