"""The first answer of a task that the replica never saw, over HTTP, by stage, next to loading the whole fine-tune.

    python -m benchmarks.cold [--quick] [--json FILE] [--texts FOLDER] [--models FOLDER]

Tasks are derived from one fine-tune of MiniLM-L6 (trained on first use, kept in `--models`; 10 % kept, zstd), so that
each task has positions and values of its own (`benchmarks.many_tasks`). Redis (Valkey) runs on the same machine. A
client asks each task once (its delta comes from the store), then again (warm; the weights change task every time), and
once more after a restart of the server that keeps its files (the delta comes from disk). Stages are measured by the
server: fetching, decoding and attaching by its metrics; queue, swap and model by each answer's Server-Timing. The
alternative to a delta is loading the whole model: its folder is on disk (and in the page cache), `from_pretrained`
opens it, and the model answers once, in this process.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.fine_tunes import tasks, with_fine_tune_options
from benchmarks.many_tasks import derive
from benchmarks.report import Row, report, with_shared_options
from ken_core import apply, deltafile, open_base, open_tuned
from serving.cores import usable_cores
from serving.demo.prepare import demo_base
from serving.launch.server_process import ServerProcess
from serving.store import Store
from serving.store.embedded import embedded_store

_TEXT = "How far is it from Denver to Aspen ?"
_LOAD_STAGES = ("fetch", "decode", "attach")
_ANSWER_STAGES = ("queue", "swap", "model")


def main() -> None:
    parser = with_shared_options(argparse.ArgumentParser(description=__doc__))
    options = with_fine_tune_options(parser).parse_args()
    count = 8 if options.quick else 64
    torch.set_num_threads(usable_cores())
    base = open_base(demo_base())
    tuned = open_tuned(str(tasks(options.texts)[0].fine_tune(0, options.models)))
    with tempfile.TemporaryDirectory() as folder, embedded_store(Path(folder)) as url:
        store, whole = Store(url), Path(folder) / "whole"
        names = []
        for i, delta in enumerate(derive(base, tuned, count)):
            file = deltafile.write(delta, base, Path(folder) / "one.ken", "zstd")
            store.tasks.publish(f"task-{i}", file)
            names.append(f"task-{i}")
            if i == 0:
                apply(base, delta, whole)
        rows = [Row("delta file", file.size / 1e6, "MB")]
        settings = {"base": demo_base(), "redis_url": url, "data_dir": folder, "threads": str(usable_cores())}
        with ServerProcess(settings, Path(folder) / "log") as server:
            rows += _measure(server.url, names, "from the store")
            rows += _measure(server.url, [*names[1:], names[0]], "warm")
        with ServerProcess(settings, Path(folder) / "log") as server:
            rows += _measure(server.url, names, "from disk")
        rows += _whole_models(whole, 3 if options.quick else 15)
    report(f"First answer, MiniLM-L6, {count} tasks, {usable_cores()} threads", _with_ratios(rows), options.json)


def _measure(url: str, names: Sequence[str], how: str) -> list[Row]:
    """Ask each task once; medians of the stages of answers, means of the stages of loads."""
    total: list[float] = []
    stages: dict[str, list[float]] = {name: [] for name in _ANSWER_STAGES}
    with httpx.Client(base_url=url, timeout=60) as client:
        before = _load_sums(client)
        for name in names:
            began = time.perf_counter()
            answer = client.post(f"/v1/tasks/{name}/predict", json={"inputs": _TEXT})
            total.append(time.perf_counter() - began)
            answer.raise_for_status()
            for stage, milliseconds in re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]):
                if stage in stages:
                    stages[stage].append(float(milliseconds))
        after = _load_sums(client)
    rows = [Row(f"{how}: answer, median", statistics.median(total) * 1000, "ms")]
    rows += [Row(f"{how}: answer, slowest", max(total) * 1000, "ms")]
    rows += [Row(f"{how}: {s}, mean", (after[s] - before[s]) / len(names) * 1000, "ms") for s in _LOAD_STAGES]
    return rows + [Row(f"{how}: {stage}, median", statistics.median(t), "ms") for stage, t in stages.items()]


def _load_sums(client: httpx.Client) -> dict[str, float]:
    """Seconds spent so far in each stage of loading."""
    sums = dict.fromkeys(_LOAD_STAGES, 0.0)
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "ken_load_stage_seconds_sum":
                sums[sample.labels["stage"]] = sample.value
    return sums


def _whole_models(folder: Path, times: int) -> list[Row]:
    """The time from loading the whole fine-tune to its first answer."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.inference_mode():
            model(**tokenizer(_TEXT, return_tensors="pt")).logits.softmax(-1).tolist()
        seconds.append(time.perf_counter() - began)
    return [Row("whole model by from_pretrained, no HTTP: answer, median", statistics.median(seconds) * 1000, "ms")]


def _with_ratios(rows: list[Row]) -> list[Row]:
    whole = next(r for r in rows if r.name.startswith("whole model"))
    answers = [r for r in rows if r.name.endswith(": answer, median") and r is not whole]
    return rows + [
        Row(f"{r.name.removesuffix(', median')}", r.value / whole.value, "ratio", whole.name) for r in answers
    ]


if __name__ == "__main__":
    main()
