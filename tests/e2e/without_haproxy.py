"""``ken serve`` as it is on a machine that has no HAProxy: Ray's stock proxy answers clients."""

from __future__ import annotations

import sys

from serving.cli import main
from serving.launch import checks

if __name__ == "__main__":
    checks.find_haproxy = lambda: None
    main(sys.argv[1:])
