"""``ken serve`` whose replicas lose their weights once a file ``poison`` lies in their data directory.

Then the next exchange fails, and reading the checkpoint to restore the base fails too. The exchange also removes the
file, so that the replica that takes the failed one's place works.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from serving.cli import main
from serving.launch import cluster


def deploy_failing_replicas() -> None:
    from serving import app

    class Failing(app.Replica.func_or_class):  # type: ignore[name-defined,misc]
        async def __init__(self, settings: dict[str, Any]) -> None:
            await super().__init__(settings)
            lose_weights_when_told(self._service.resident, Path(settings["data_dir"]) / "poison")

    app.Replica = app.Replica.options(func_or_class=Failing)  # type: ignore[attr-defined]


def lose_weights_when_told(resident: Any, told: Path) -> None:
    point = resident._point

    def lost(name: str) -> None:
        raise OSError("input/output error")

    def failing(tensors: Any) -> None:
        if told.exists():
            told.unlink()
            resident.checkpoint_tensor = lost
            raise RuntimeError("the device is gone")
        point(tensors)

    resident._point = failing


if __name__ == "__main__":
    start = cluster.start_application

    def start_with_failing_replicas(*arguments: Any) -> None:
        deploy_failing_replicas()
        start(*arguments)

    cluster.start_application = start_with_failing_replicas
    main(sys.argv[1:])
