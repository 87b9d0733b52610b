"""An engine that mixes tasks, with its parts at hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from holding import Blocked, until

from ken_core import DeltaFile, ResidentModel, open_base
from ken_core.mixing.model import MixedModel
from serving.engine.engine import Engine
from serving.pipelines import PIPELINES
from serving.pipelines.base import Pipeline
from serving.store import Store
from serving.telemetry.metrics import Metrics
from serving.tiers.cache import DeltaCache
from serving.tiers.files import DeltaFiles
from tests.tiny_checkpoints import TEXTS, Tiny

FOREVER = 1e12
CLASSIFY = PIPELINES["text-classification"]


class Bench:
    def __init__(self, tiny: Tiny, store: Store, folder: Path, **options: Any) -> None:
        self.resident = ResidentModel(open_base(str(tiny.base_folder)))
        files = DeltaFiles(folder / "deltas", 1 << 30, store)
        cache = DeltaCache(files, 1 << 30, self.resident.checkpoint, self.resident.fingerprint.digest)
        self.metrics = Metrics("bench")
        self.mixed = MixedModel(self.resident)
        self.engine = Engine(self.resident, cache, self.metrics, mixed=self.mixed, **options)
        self.engine.start()

    async def ask(self, file: DeltaFile, *texts: str, pipeline: Pipeline = CLASSIFY) -> tuple[list[np.ndarray], bool]:
        """Logits for texts, and whether a mixed batch gave them."""
        loaded = await self.engine.tiers.acquire(file.digest)
        try:
            rows = loaded.spec.encoder(texts or TEXTS)
            results, timing = await self.engine.answer(loaded, pipeline, rows, FOREVER)
        finally:
            self.engine.tiers.release(loaded)
        return results, timing.mixed

    def ask_all(self, asked: list[tuple[DeltaFile, str]]) -> list[tuple[np.ndarray, bool]]:
        """All of them wait before the first one runs."""

        async def run() -> list[tuple[np.ndarray, bool]]:
            for digest in {file.digest for file, _ in asked}:
                self.engine.tiers.release(await self.engine.tiers.acquire(digest))
            with Blocked(self.engine):
                waiting = [asyncio.create_task(self.ask(file, text)) for file, text in asked]
                await until(lambda: self.engine.waiting == len(asked))
            answers = await asyncio.gather(*waiting)
            return [(results[0], mixed) for results, mixed in answers]

        return asyncio.run(run())

    def forward_passes(self) -> float:
        return self.metrics.registry.get_sample_value("ken_batch_rows_count", {"replica": "bench"}) or 0.0
