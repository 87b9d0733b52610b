"""Record a trace of one replica for `benchmarks.simulate`: which rows arrived when, and how long batches took.

    python -m benchmarks.traces.record FILE [--rate 25] [--seconds 120] [--tasks 12]

The whole service runs in this process on MiniLM-L6, with as many threads as there are cores. Its tasks are copies of
the base with a tenth of the weights moved at random: how long a switch takes depends on how many weights moved, not on
which. Clients send the demonstration's texts (news, tweets, catalogue entries), one in each request, in an open loop:
Poisson arrivals that do not wait for answers, tasks by Zipf's law.

The file's first line is an object of what was measured: mean seconds of a switch, a least-squares fit of batches, and
latencies (from a row's arrival in line to the end of its batch). Every further line is [seconds, task, tokens].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from ken_core import deltafile, extract, open_base, open_tuned
from serving.config import load_settings
from serving.demo.prepare import demo_base
from serving.demo.texts import TASKS
from serving.engine.engine import Engine
from serving.engine.exchange import Exchange
from serving.engine.line import Line, Row
from serving.errors import ServingError
from serving.service import Service
from serving.store import Store
from serving.store.embedded import embedded_store


class Recorded(Line[Any]):
    """A line that keeps the arrivals of its rows, beside what batches and switches took."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals: list[tuple[float, Hashable, int]] = []
        self.batches: list[tuple[int, float]] = []
        self.switches: list[tuple[float]] = []

    def add(self, row: Row[Any]) -> None:
        self.arrivals.append((row.arrived, row.key, row.tokens))
        super().add(row)


def _record(engine: Engine) -> Recorded:
    """Have an engine that was not started keep what it learns."""
    recorded = engine._line = Recorded()
    exchange = engine._executor
    assert isinstance(exchange, Exchange)
    for cost, kept in ((exchange._cost, recorded.batches), (exchange._switch, recorded.switches)):
        cost.learn = _noting(cost.learn, kept)  # type: ignore[method-assign]
    return recorded


def _noting(learn: Callable[..., None], kept: list[Any]) -> Callable[..., None]:
    def learned(*measured: float) -> None:
        kept.append(measured)
        learn(*measured)

    return learned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--tasks", type=int, default=12)
    options = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, embedded_store(Path(folder) / "store") as url:
        names = [f"t{i}" for i in range(options.tasks)]
        _publish(names, Store(url), Path(folder))
        service = Service(load_settings(base=demo_base(), data_dir=Path(folder), preload=names, mixed="off"), url)
        recorded = _record(service.engine)
        service.start()
        latencies = asyncio.run(_send(service, names, options.rate, options.seconds))
        keys = {(service.table.resolve(name), "text-classification"): name for name in names}
        service.stop()
    _write(options.file, recorded, keys, latencies)


def _publish(names: list[str], store: Store, folder: Path) -> None:
    base = open_base(demo_base())
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(demo_base(), num_labels=4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.002 * torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.1)
        model.save_pretrained(folder / "tuned")
        delta = extract(base, open_tuned(str(folder / "tuned")))
        store.tasks.publish(name, deltafile.write(delta, base, folder / "delta.ken"))


async def _send(service: Service, names: list[str], rate: float, seconds: float) -> list[float]:
    """Send requests at a mean rate, whatever comes back; the latencies of the answers in seconds."""
    chance = random.Random(0)
    texts = [example.text for task in TASKS for example in task.load()]
    weights = list(accumulate(1 / (i + 1) for i in range(len(names))))
    latencies: list[float] = []

    async def ask(name: str, text: str) -> None:
        with suppress(ServingError):  # a request that is refused or late has arrived all the same
            answer = await service.predict(service.table.resolve(name), [text], {}, 30.0)
            latencies.append(answer.timing.queue + answer.timing.swap + answer.timing.model)

    sent = []
    began = at = time.perf_counter()
    while at < began + seconds:
        at += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        sent.append(asyncio.create_task(ask(chance.choices(names, cum_weights=weights)[0], chance.choice(texts))))
    await asyncio.gather(*sent)
    return latencies


def _write(file: Path, recorded: Recorded, keys: dict[tuple[str, str], str], latencies: list[float]) -> None:
    padded, seconds = np.array(recorded.batches).T
    (fixed, token), *_ = np.linalg.lstsq(np.stack([np.ones_like(padded), padded], axis=1), seconds, rcond=None)
    latencies.sort()
    first = {
        "switch": statistics.mean(seconds for (seconds,) in recorded.switches),
        "fixed": fixed,
        "token": token,
        "batches": len(seconds),
        "switches": len(recorded.switches),
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[int(0.99 * len(latencies))],
    }
    began = recorded.arrivals[0][0]
    lines = [json.dumps({name: round(value, 8) for name, value in first.items()})]
    lines += [json.dumps([round(at - began, 4), keys[key], tokens]) for at, key, tokens in recorded.arrivals]  # type: ignore[index]
    file.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
