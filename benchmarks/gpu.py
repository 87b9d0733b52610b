"""The exchange on a CUDA device: is it right, how near is it to the copy bandwidth, what does a switch cost a batch?

    python -m benchmarks.gpu [--quick] [--json FILE]

Correctness comes first, and if it fails nothing is measured. The kernel is compared with numpy on random bits (NaN
payloads among them), and the answer of a model on the device with an injected delta is compared with that of the same
weights in float64 on the CPU.

Then switching is timed on random weights in bfloat16, in the shapes of BERT-base and of BLOOM 1.7 B, where tasks change
the layers. For each kept share the exchange and the switch stand next to the limit: the bytes that an exchange must
move (masks once; values and 32-byte sectors with a kept element, both read and written) at the bandwidth of a large
copy. A forward pass of 128 tokens is timed with and without a switch before each batch. Times are medians between
device events.

`--quick` takes 2 layers of each model, two kept shares, and fewer turns.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, BertConfig, BloomConfig, PretrainedConfig
from transformers.utils import logging

from benchmarks.report import Row, arguments, report
from benchmarks.swap import Way, bytes_to_move, random_delta
from ken_core import open_base
from ken_core.bits import Bits, as_bits, from_bits, pack_mask
from ken_core.kernels import Segment, exchange_for, pack
from ken_core.resident import Attached, ResidentModel

DEVICE = torch.device("cuda")
TOKENS = 128
BATCHES = (1, 8, 32)
_SECTOR = 32
"""Bytes that a GPU reads or writes at once."""


@dataclass(frozen=True)
class Shape:
    """A model to switch tasks in. `changed` is the prefix of the names of the tensors that a task changes."""

    name: str
    config: PretrainedConfig
    changed: str


def main() -> None:
    options = arguments(__doc__)
    if not torch.cuda.is_available():
        sys.exit("no CUDA device found; run this benchmark on a machine with one (on a CPU: python -m benchmarks.swap)")
    logging.disable_progress_bar()
    fewer = 2 if options.quick else None
    shapes = [
        Shape("BERT-base", BertConfig(num_hidden_layers=fewer or 12), "encoder."),
        Shape("BLOOM 1.7 B", BloomConfig(hidden_size=2048, n_layer=fewer or 24, n_head=16), "h."),
    ]
    _check_exchange()
    rows = [Row("BERT-base: relative error against float64 on the CPU", _error_of_answers(), "1")]
    kept = (0.10, 0.50) if options.quick else (0.01, 0.05, 0.10, 0.25, 0.50)
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            rows += Bench(shape, Path(folder), turns=11 if options.quick else 51).rows(kept)
    report(f"switching tasks on one {torch.cuda.get_device_name()}, bfloat16", rows, options.json)


class Bench:
    """One model on the device in bfloat16, whose layers are changed by tasks."""

    def __init__(self, shape: Shape, folder: Path, turns: int) -> None:
        self._shape, self._turns = shape, turns
        torch.manual_seed(0)
        AutoModel.from_config(shape.config, dtype=torch.bfloat16).save_pretrained(folder)
        self._base = open_base(str(folder))
        self._resident = ResidentModel(self._base, DEVICE)
        self._names = [n for n in self._base.backbone_tensors if n.startswith(shape.changed)]

    def rows(self, shares: tuple[float, ...]) -> Iterator[Row]:
        name = self._shape.name
        there, here = torch.ones(2, 1 << 30, device=DEVICE, dtype=torch.int8)
        bandwidth = 2 * here.nbytes / self._seconds(Way(lambda: there.copy_(here)))
        yield Row(f"{name}: changed", sum(self._base.backbone_tensors[n].numel() for n in self._names), "1")
        yield Row(f"{name}: large copy", bandwidth / 1e9, "GB/s")
        for kept in shares:
            deltas = [random_delta(self._base, self._resident, self._names, kept, seed) for seed in (1, 2)]
            limit = bytes_to_move(deltas[0], torch.bfloat16, _SECTOR) / bandwidth
            tasks = [self._resident.attach(d) for d in deltas]
            yield from self._switches(f"{name}, {kept:.0%} kept", tasks, limit)
            if kept == 0.10:
                for batch in BATCHES:
                    yield from self._batches(f"{name}, {kept:.0%} kept, batch {batch}", tasks, batch)
            self._resident.revert()

    def _switches(self, at: str, tasks: list[Attached], limit: float) -> Iterator[Row]:
        activate = self._resident.activate
        exchange = self._seconds(Way(partial(activate, tasks[0]), before=partial(activate, None)))
        switch = self._seconds(Way(partial(activate, tasks[1]), before=partial(activate, tasks[0])))
        yield Row(f"{at}: limit", limit * 1e3, "ms")
        yield Row(f"{at}: exchange", exchange * 1e3, "ms")
        yield Row(f"{at}: exchange, A -> B", switch * 1e3, "ms")
        yield Row(f"{at}: exchange, against limit", exchange / limit, "ratio", f"{at}: limit")

    @torch.inference_mode()
    def _batches(self, at: str, tasks: list[Attached], batch: int) -> Iterator[Row]:
        tokens = torch.randint(self._shape.config.vocab_size, (batch, TOKENS), device=DEVICE)
        backbone, activate = self._resident.backbone.eval(), self._resident.activate

        def switched() -> None:
            activate(tasks[1])
            backbone(tokens)

        alone = self._seconds(Way(lambda: backbone(tokens)))
        after = self._seconds(Way(switched, before=partial(activate, tasks[0])))
        yield Row(f"{at}: forward", alone * 1e3, "ms")
        yield Row(f"{at}: switch and forward", after * 1e3, "ms")
        yield Row(f"{at}: with a switch, against without", after / alone, "ratio", f"{at}: forward")

    def _seconds(self, way: Way) -> float:
        """Median seconds between device events around `way`, after three turns that are not counted."""
        return statistics.median([_between_events(way) for _ in range(self._turns + 3)][3:])


def _between_events(way: Way) -> float:
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    way.before()
    torch.cuda.synchronize()
    began.record()
    way.switch()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def _check_exchange() -> None:
    """Compare the kernel with numpy, bit for bit, for an exchange and the one back; exit if they differ."""
    rng = np.random.default_rng(0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        exchange = exchange_for(DEVICE, dtype)
        for size in (1, 65, 4097, 3_000_001):
            for kept in (0.0, 0.1, 1.0):
                mask = rng.random(size) < kept
                before, values = _random_bits(rng, size, dtype), _random_bits(rng, int(mask.sum()), dtype)
                after = before.copy()
                after[mask] = values
                weights = from_bits(before.copy(), dtype).to(DEVICE)
                packed = pack([Segment(0, pack_mask(mask), values)], dtype, DEVICE)
                for expected, held in ((after, before[mask]), (before, values)):
                    exchange(weights, packed)
                    _require_same(weights, expected, f"{dtype}, {size} weights, {kept:.0%} kept")
                    _require_same(packed.values, held, f"{dtype}, {size} values, {kept:.0%} kept")


def _random_bits(rng: np.random.Generator, count: int, dtype: torch.dtype) -> Bits:
    return np.frombuffer(rng.bytes(count * dtype.itemsize), f"u{dtype.itemsize}")


def _require_same(found: torch.Tensor, expected: Bits, what: str) -> None:
    if not np.array_equal(as_bits(found.cpu()), expected):
        sys.exit(f"the exchange on {torch.cuda.get_device_name()} is wrong ({what}); nothing was measured")


@torch.inference_mode()
def _error_of_answers() -> float:
    """|found - expected| / |expected| for a float32 model with an injected task; exit if it is above 1e-3."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModel.from_config(BertConfig(num_hidden_layers=2)).save_pretrained(folder)
        base = open_base(folder)
        tokens = torch.randint(30_000, (4, TOKENS))
        resident = ResidentModel(base, DEVICE)
        names = [n for n in base.backbone_tensors if n.startswith("encoder.")]
        delta = random_delta(base, resident, names, 0.10, seed=3)
        own = AutoModel.from_pretrained(folder).double().eval()
        for name, entry in delta.sparse.items():
            bits = as_bits(base.backbone_tensors[name]).copy()
            bits[entry.mask] = entry.values
            own.get_parameter(name).copy_(from_bits(bits, entry.dtype).view(entry.shape))
        resident.activate(resident.attach(delta))
        found = resident.backbone.eval()(tokens.to(DEVICE)).last_hidden_state.double().cpu()
        expected = own(tokens).last_hidden_state
    error = float((found - expected).norm() / expected.norm())
    if not error < 1e-3:
        sys.exit(f"answers on {torch.cuda.get_device_name()} differ by {error:.1e}; nothing was measured")
    return error


if __name__ == "__main__":
    main()
