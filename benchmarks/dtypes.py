"""Serving dtypes: answers and times in bfloat16 and float16, next to the checkpoint's float32.

    python -m benchmarks.dtypes [--quick] [--json FILE] [--texts FOLDER] [--models FOLDER]

Fine-tunes of MiniLM-L6, 10 % kept, are injected into a base of each dtype and answer test texts in batches of 32, in
the order of the file. Scores are probabilities, and differences are those from the float32 scores. The dtypes take
turns batch by batch; times are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import PreTrainedModel

from benchmarks.fine_tunes import Task, tasks, with_fine_tune_options
from benchmarks.report import Row, report, with_shared_options
from ken_core import Delta, ResidentModel, extract, graft, open_base, open_tuned
from ken_core.tokenization import Encoder, collate
from serving.cores import usable_cores
from serving.demo.prepare import demo_base

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BATCH = 32


def main() -> None:
    parser = with_shared_options(argparse.ArgumentParser(description=__doc__))
    options = with_fine_tune_options(parser).parse_args()
    torch.set_num_threads(usable_cores())
    rows = []
    for task in tasks(options.texts)[: 1 if options.quick else 2]:
        rows += _measure(task, open_tuned(str(task.fine_tune(0, options.models))), 96 if options.quick else 500)
    report(f"Serving dtypes, MiniLM-L6, {usable_cores()} threads", rows, options.json)


def _measure(task: Task, tuned: object, count: int) -> list[Row]:
    base = open_base(demo_base())
    delta = extract(base, tuned)  # type: ignore[arg-type]
    encoder = Encoder(base, base.config, delta.files)
    examples = task.test[:count]
    encoded = encoder([e.text for e in examples])
    models = {name: _injected(delta, dtype) for name, dtype in _DTYPES.items()}
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in models}
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for first in range(0, len(encoded), _BATCH):
            batch = collate(encoded[first : first + _BATCH], encoder.pad_id, torch.device("cpu"))
            for name, model in models.items():
                began = time.perf_counter()
                logits = model(**batch).logits
                times[name].append(time.perf_counter() - began)
                scores[name].append(logits.float().softmax(-1))
    exact = torch.cat(scores["float32"])
    labels = [models["float32"].config.id2label[i] for i in range(exact.shape[1])]
    rows = []
    for name in models:
        found = torch.cat(scores[name])
        right = sum(labels[i] == e.label for i, e in zip(found.argmax(1).tolist(), examples, strict=True))
        here = f"{task.name}, {name}"
        rows += [
            Row(f"{here}: accuracy", right / len(examples), "share"),
            Row(f"{here}: labels that differ", float((found.argmax(1) != exact.argmax(1)).sum()), "texts"),
            Row(f"{here}: largest difference of a score", float((found - exact).abs().max()), "probability"),
            Row(f"{here}: batch of {_BATCH}, median", statistics.median(times[name]) * 1000, "ms"),
            Row(
                f"{here}: batch of {_BATCH}",
                statistics.median(times[name]) / statistics.median(times["float32"]),
                "ratio",
                f"{task.name}, float32",
            ),
        ]
    return rows


def _injected(delta: Delta, dtype: torch.dtype) -> PreTrainedModel:
    resident = ResidentModel(open_base(demo_base()), dtype=dtype)
    attached = resident.attach(delta)
    resident.activate(attached)
    return graft(resident.backbone, delta.architecture, delta.config, attached.head)


if __name__ == "__main__":
    main()
