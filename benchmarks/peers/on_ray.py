"""What `ken serve` starts - cluster, HAProxy and switches - with another deployment on it."""

from __future__ import annotations

from collections.abc import Callable

from serving.cli import main
from serving.launch import cluster


def serve_with(replace: Callable[[], None]) -> None:
    """Run ``ken serve``, settings by environment, after `replace` changed what `serving.app` deploys.

    It has to run late: Ray reads its switches when it is imported, which the launcher does once it has set them.
    """
    start = cluster.start_application

    def start_another(*arguments: object) -> None:
        replace()
        start(*arguments)  # type: ignore[arg-type]

    cluster.start_application = start_another
    main(["serve"])
