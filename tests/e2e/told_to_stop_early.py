"""``ken serve`` that gets SIGTERM when replicas answer, before Ray reports it."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from serving.cli import main
from serving.launch import cluster

if __name__ == "__main__":
    start = cluster.start_application

    def start_and_be_told_to_stop(*arguments: Any) -> None:
        start(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    cluster.start_application = start_and_be_told_to_stop
    main(sys.argv[1:])
