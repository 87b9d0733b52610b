"""A server with Ray Serve's own `@serve.multiplexed`, loading whole models from disk, behind the same proxy.

    PEER_FOLDER=... PEER_TASKS=a,b,... PEER_HELD=9 PEER_THREADS=2 KEN_... python -m benchmarks.peers.multiplexed

It runs with the same Ray variables as this project's server. PEER_HELD is how many models stay in memory. Ray's
`@serve.batch` makes batches and splits them by model.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks.peers.on_ray import serve_with


def build(settings: dict[str, Any]) -> Any:
    """Build the application that takes the place of the one that `serving.app.build` makes."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    import torch
    from ray import serve
    from starlette.requests import Request

    from benchmarks.peers.whole_models import BATCH, WholeModels

    folder, tasks = Path(os.environ["PEER_FOLDER"]), os.environ["PEER_TASKS"].split(",")
    held, threads = int(os.environ["PEER_HELD"]), int(os.environ["PEER_THREADS"])

    @serve.deployment(max_ongoing_requests=1_000_000, ray_actor_options={"num_cpus": 1})
    class Multiplexed:
        def __init__(self) -> None:
            self._models = WholeModels(folder, tasks)
            self._computing = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))

        @serve.multiplexed(max_num_models_per_replica=held)
        async def model(self, task: str) -> Any:
            return await asyncio.to_thread(self._models.load, task)

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.005)
        async def classify(self, texts: list[str]) -> list[dict[str, Any]]:
            model = await self.model(serve.get_multiplexed_model_id())
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._computing, self._models.classify, model, texts)
            return [{"label": answer.label, "score": answer.score} for answer in found]

        async def __call__(self, request: Request) -> dict[str, Any]:
            if request.method == "GET":
                return {}
            return await self.classify((await request.json())["text"])

        def drain(self, seconds: float) -> int:
            """The launcher calls this when it stops."""
            return 0

    return Multiplexed.bind()


def replace() -> None:
    from serving import app

    app.build = build


if __name__ == "__main__":
    serve_with(replace)
