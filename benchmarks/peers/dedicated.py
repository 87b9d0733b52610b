"""A server of one fine-tune in a process of its own: uvicorn, transformers, and a queue that makes batches.

python -m benchmarks.peers.dedicated FOLDER TASK PORT THREADS
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from benchmarks.peers.whole_models import BATCH, Answer, WholeModels

Waiting = tuple[str, "asyncio.Future[Answer]"]


class Batches:
    """Runs the texts that wait, at most `BATCH`, as one batch on the one thread that computes."""

    def __init__(self, models: WholeModels, task: str, threads: int) -> None:
        self._models = models
        self._model = models.load(task)
        self._computing = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()

    async def ask(self, text: str) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((text, answer))
        return await answer

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            texts = [text for text, _ in batch]
            answers = await loop.run_in_executor(self._computing, self._models.classify, self._model, texts)
            for (_, waiting), answer in zip(batch, answers, strict=True):
                if not waiting.done():
                    waiting.set_result(answer)


def application(batches: Batches) -> Starlette:
    @asynccontextmanager
    async def running(app: Starlette):  # type: ignore[no-untyped-def]
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def predict(request: Request) -> JSONResponse:
        answer = await batches.ask((await request.json())["text"])
        return JSONResponse({"label": answer.label, "score": answer.score})

    async def health(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ready")

    routes = [Route("/predict", predict, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=running)


if __name__ == "__main__":
    _folder, _task, _port, _threads = sys.argv[1:]
    torch.set_num_threads(int(_threads))
    _batches = Batches(WholeModels(Path(_folder), [_task]), _task, int(_threads))
    uvicorn.run(application(_batches), port=int(_port), log_level="warning", access_log=False)
