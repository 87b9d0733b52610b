"""Requests per second and latency over HTTP, with 1 and 32 connections, for 1 and for 3 tasks, next to the same
models called directly in this process.

    python -m benchmarks.serving [--quick] [--json FILE]

The tasks are the demonstration's: fine-tuned on first use, kept under the data directory. One text a request; every
connection has one request in flight. The direct calls use as many threads as the server's replica.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.report import Row, arguments, report
from ken_core import ResidentModel, deltafile, graft, open_base
from ken_core.examples import Example
from ken_core.tokenization import Encoder, collate
from serving.config import default_data_dir
from serving.demo.prepare import Prepared, demo_base, prepare
from serving.demo.traffic import Reply, send_until
from serving.embedded import embedded_store
from serving.process import ServerProcess
from serving.store import Store

_THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_BATCH = 32


def main() -> None:
    options = arguments(__doc__)
    seconds = 3.0 if options.quick else 15.0
    torch.set_num_threads(_THREADS)
    data_dir = Path(os.environ.get("KEN_DATA_DIR") or default_data_dir()).expanduser()
    base = open_base(demo_base())
    resident = ResidentModel(open_base(demo_base()))
    prepared = prepare(base, resident.fingerprint, data_dir / "demo")
    rows = _direct(resident, prepared[0], seconds)
    with tempfile.TemporaryDirectory() as folder, embedded_store(Path(folder)) as url:
        store = Store(url)
        for p in prepared:
            store.publish(p.task.name, p.file)
        settings = {"base": demo_base(), "redis_url": url, "data_dir": folder, "threads": str(_THREADS)}
        with ServerProcess(settings, Path(folder) / "log") as server:
            for tasks, connections in itertools.product((1, len(prepared)), (1, 32)):
                rows += _over_http(server.url, prepared[:tasks], connections, seconds)
    report(f"MiniLM-L6, one text a request, {_THREADS} threads", _with_ratios(rows), options.json)


def _direct(resident: ResidentModel, p: Prepared, seconds: float) -> list[Row]:
    """The first task's model called in a loop: one text at a time, and 32 at a time."""
    delta = deltafile.read(p.file, resident.checkpoint, resident.fingerprint.digest)
    attached = resident.attach(delta)
    resident.activate(attached)
    model = graft(resident.backbone, delta.architecture, delta.config, attached.head)
    encoder = Encoder(resident.checkpoint, model.config, {})
    rows = []
    with torch.inference_mode():
        for size in (1, _BATCH):
            texts = itertools.cycle([e.text for e in p.held_out])
            times: list[float] = []
            end = time.perf_counter() + seconds
            while (began := time.perf_counter()) < end:
                encoded = encoder(list(itertools.islice(texts, size)))
                model(**collate(encoded, encoder.pad_id, resident.device)).logits.softmax(-1).tolist()
                times.append(time.perf_counter() - began)
            name = f"direct, {size} a call"
            rows.append(Row(f"{name}: texts/s", size * len(times) / sum(times), "1/s"))
            rows.append(Row(f"{name}: median", statistics.median(times) * 1000, "ms"))
    resident.revert()
    return rows


def _over_http(url: str, prepared: list[Prepared], connections: int, seconds: float) -> list[Row]:
    requests: list[tuple[str, Example]] = [(p.task.name, e) for p in prepared for e in p.held_out]
    random.Random(0).shuffle(requests)
    asyncio.run(send_until(url, requests, connections, asyncio.sleep(1.0)))
    began = time.perf_counter()
    replies = asyncio.run(send_until(url, requests, connections, asyncio.sleep(seconds)))
    elapsed = time.perf_counter() - began
    wrong = [r for r in replies if r.status != 200]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(replies)} requests failed, the first with status {wrong[0].status}")
    several = "s" if connections > 1 else ""
    name = f"HTTP, {len(prepared)} task{'s' if len(prepared) > 1 else ''}, {connections} connection{several}"
    return [
        Row(f"{name}: texts/s", len(replies) / elapsed, "1/s"),
        Row(f"{name}: median", _quantile(replies, 0.5), "ms"),
        Row(f"{name}: p99", _quantile(replies, 0.99), "ms"),
    ]


def _with_ratios(rows: list[Row]) -> list[Row]:
    """Each HTTP rate against the direct call with as many texts at hand, each 3-task rate against its 1-task one."""
    rates = {r.name.removesuffix(": texts/s"): r.value for r in rows if r.unit == "1/s"}
    found = list(rows)
    for name, rate in rates.items():
        if name.startswith("HTTP"):
            direct = "direct, 1 a call" if name.endswith("1 connection") else f"direct, {_BATCH} a call"
            found.append(Row(f"{name}: rate", rate / rates[direct], "ratio", direct))
        if name.startswith("HTTP, 3"):
            one = name.replace("3 tasks", "1 task")
            found.append(Row(f"{name}: rate", rate / rates[one], "ratio", one))
    return found


def _quantile(replies: list[Reply], share: float) -> float:
    ordered = sorted(r.seconds for r in replies)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


if __name__ == "__main__":
    main()
