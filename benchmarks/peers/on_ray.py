"""Running another deployment on what `ken serve` starts: its cluster, HAProxy and Ray's variables."""

from __future__ import annotations

from collections.abc import Callable

from serving.cli import main
from serving.launch import cluster


def serve_with(replace: Callable[[], None]) -> None:
    """Run ``ken serve`` with settings from the environment; `replace` changes what `serving.app` deploys.

    `replace` must run late, since it imports Ray: Ray reads its variables when it is imported, so the launcher has to
    set them before that.
    """
    start = cluster.start_application

    def start_another(*arguments: object) -> None:
        replace()
        start(*arguments)  # type: ignore[arg-type]

    cluster.start_application = start_another
    main(["serve"])
