"""A LitServe server with every fine-tune in one worker, in batches that may hold several tasks.

    python -m benchmarks.peers.litserve_server FOLDER TASKS PORT THREADS

TASKS is separated by commas. LitServe could also have one API for each model, each in its own process; the system
"process a task" covers that case. This module runs in LitServe's own environment.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import litserve
import torch

from benchmarks.peers.whole_models import BATCH, WholeModels


class Classify(litserve.LitAPI):
    """The API: a request `{"task", "text"}` is answered with `{"label", "score"}`."""

    def __init__(self, folder: Path, tasks: list[str], threads: int) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=0.005)
        self._folder, self._tasks, self._threads = folder, tasks, threads

    def setup(self, device: str) -> None:
        torch.set_num_threads(self._threads)
        self._models = WholeModels(self._folder, self._tasks)
        self._loaded = {task: self._models.load(task) for task in self._tasks}

    def predict(self, x: list[dict[str, str]]) -> list[dict[str, Any]]:
        """One forward pass for each task in the batch."""
        by_task: defaultdict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(x):
            by_task[request["task"]].append(i)
        answers: dict[int, dict[str, Any]] = {}
        for task, places in by_task.items():
            found = self._models.classify(self._loaded[task], [x[i]["text"] for i in places])
            answers |= {i: {"label": a.label, "score": a.score} for i, a in zip(places, found, strict=True)}
        return [answers[i] for i in range(len(x))]


def main() -> None:
    folder, tasks, port, threads = sys.argv[1:]
    server = litserve.LitServer(
        Classify(Path(folder), tasks.split(","), int(threads)),
        accelerator="cpu",
        fast_queue=True,
        timeout=60,
    )
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
