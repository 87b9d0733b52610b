"""Milliseconds to switch tasks, by way of switching and by kept share, next to the machine's copy bandwidth.

    python -m benchmarks.swap [--quick] [--json FILE]

Weights are random, in the shapes of MiniLM-L6 (every tensor changed, 22.7 M) and of BERT-base (the layers changed, 85
M; the embeddings not), in float32 and bfloat16; masks are random. All ways of one table take turns, so that other work
of the machine affects them alike; figures are medians.

- **exchange**: `ResidentModel.activate`, from the base to a packed delta; **A -> B**: from one packed delta to another
- **materialised A -> B**: the same, between deltas whose changed tensors exist in full
- **copy_**, **index_copy_**: every changed tensor, or only its kept elements (64-bit positions), are written from a
  second copy; this goes one way only, since the values before are lost
- **load_state_dict**: the whole model is loaded, the usual way to switch without this project
- **limit**: the bytes an exchange must move (masks once; values and every 64-byte line of weights that holds a kept
  element, both read and written) at the bandwidth of a large copy (bytes read and written) measured in the same turns
- **peft set_adapter**: from one LoRA adapter (r = 8) of a model to another, in an environment of its own under
  `$KEN_DATA_DIR/peers/peft`, made on first use; it changes no weights, but every forward pass pays for the factors

`--quick` takes 2 layers and 6,000 word vectors of each model, and fewer turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

from benchmarks.report import Row, arguments, report
from ken_core import Checkpoint, Selection, open_base
from ken_core.bits import as_bits, from_bits, pack_mask
from ken_core.delta import Delta
from ken_core.entries import Sparse
from ken_core.resident import ResidentModel

KEPT = (0.01, 0.05, 0.10, 0.25, 0.50)
DTYPES = (torch.float32, torch.bfloat16)
_LINE = 64
"""Bytes of a cache line."""
_COPIED = 1 << 28
"""Bytes of the copy that measures the bandwidth: several times any cache."""


@dataclass(frozen=True)
class Shape:
    """A model to switch tasks in. `changed` is the prefix of the names of the tensors that a task changes."""

    name: str
    config: Mapping[str, Any]
    changed: str


MINILM = Shape(
    "MiniLM-L6",
    {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    changed="",
)
BERT = Shape("BERT-base", {}, changed="encoder.")


def main() -> None:
    options = arguments(__doc__)
    logging.disable_progress_bar()
    smaller = {"num_hidden_layers": 2, "vocab_size": 6000} if options.quick else {}
    turns = 5 if options.quick else 21
    rows: list[Row] = []
    tables: list[Table] = []
    for shape in (replace(s, config={**s.config, **smaller}) for s in (MINILM, BERT)):
        with tempfile.TemporaryDirectory() as folder:
            base = _base(shape, Path(folder))
            for dtype in DTYPES:
                bench = Bench(base, shape, dtype, turns)
                found = {kept: bench.medians(kept) for kept in KEPT}
                rows += _rows(bench.title, found)
                tables.append(_table(bench.title, found))
        rows += _peft(shape, turns)
    tables.append(_others(rows))
    report(f"switching tasks, {torch.get_num_threads()} threads", rows, options.json, tables)


@dataclass(frozen=True)
class Way:
    """A way to switch, and the step that restores its initial state before each turn (not timed)."""

    switch: Callable[[], object]
    before: Callable[[], object] = lambda: None


class Bench:
    """The ways to switch within one model in one dtype."""

    def __init__(self, base: Checkpoint, shape: Shape, dtype: torch.dtype, turns: int) -> None:
        self._base, self._dtype, self._turns = base, dtype, turns
        self._resident = ResidentModel(base, dtype=dtype)
        self._names = [n for n in base.backbone_tensors if n.startswith(shape.changed)]
        count = sum(base.backbone_tensors[n].numel() for n in self._names)
        self.title = f"{shape.name}, {str(dtype).removeprefix('torch.')}, {count / 1e6:.1f} M changed"
        self._plain = AutoModel.from_config(BertConfig(**shape.config), dtype=dtype)
        self._memory = torch.ones(_COPIED // 4), torch.ones(_COPIED // 4)

    def medians(self, kept: float) -> dict[str, float]:
        """Seconds by way of switching, including the limit; also the copy bandwidth in bytes a second."""
        deltas = [random_delta(self._base, self._resident, self._names, kept, seed) for seed in (1, 2)]
        ways = {**self._in_the_arena(deltas), **self._in_a_plain_model(deltas)}
        times = _taking_turns(ways, self._turns)
        bandwidth = 2 * _COPIED / times.pop("large copy")
        return {**times, "limit": bytes_to_move(deltas[0], self._dtype, _LINE) / bandwidth, "bandwidth": bandwidth}

    def _in_the_arena(self, deltas: list[Delta]) -> dict[str, Way]:
        packed = [self._resident.attach(d) for d in deltas]
        full = [self._resident.attach(d, materialised=True) for d in deltas]
        activate = self._resident.activate
        return {
            "exchange": Way(partial(activate, packed[0]), before=partial(activate, None)),
            "exchange, A -> B": Way(partial(activate, packed[1]), before=partial(activate, packed[0])),
            "materialised, A -> B": Way(partial(activate, full[1]), before=partial(activate, full[0])),
        }

    def _in_a_plain_model(self, deltas: list[Delta]) -> dict[str, Way]:
        own = self._plain.state_dict()
        full = own | {n: self._tuned(n, deltas[0].sparse[n]) for n in self._names}
        positions = {n: torch.from_numpy(np.flatnonzero(deltas[0].sparse[n].mask)) for n in self._names}
        values = {n: full[n].view(-1)[positions[n]] for n in self._names}

        def copy() -> None:
            for name in self._names:
                own[name].copy_(full[name])

        def index_copy() -> None:
            for name in self._names:
                own[name].view(-1).index_copy_(0, positions[name], values[name])

        there, here = self._memory
        return {
            "copy_": Way(copy),
            "index_copy_": Way(index_copy),
            "load_state_dict": Way(lambda: self._plain.load_state_dict(full)),
            "large copy": Way(lambda: there.copy_(here)),
        }

    def _tuned(self, name: str, sparse: Sparse) -> torch.Tensor:
        """The changed tensor in full, in the serving dtype."""
        bits = as_bits(self._base.backbone_tensors[name]).copy()
        bits[sparse.mask] = sparse.values
        return from_bits(bits, sparse.dtype).view(sparse.shape).to(self._dtype)


def _base(shape: Shape, folder: Path) -> Checkpoint:
    torch.manual_seed(0)
    BertModel(BertConfig(**shape.config)).save_pretrained(folder)
    return open_base(str(folder))


def random_delta(base: Checkpoint, resident: ResidentModel, names: Sequence[str], kept: float, seed: int) -> Delta:
    """A delta that keeps a random share of the named tensors; each kept element is the base's with the sign flipped."""
    rng = np.random.default_rng(seed)

    def entry(tensor: torch.Tensor) -> Sparse:
        mask = rng.random(tensor.numel(), dtype=np.float32) < kept
        values = as_bits(tensor)[mask]
        values ^= values.dtype.type(1 << (8 * values.itemsize - 1))
        return Sparse(tuple(tensor.shape), tensor.dtype, values.size, pack_mask(mask), values)

    return Delta(
        base_name=base.name,
        base_fingerprint=resident.fingerprint.digest,
        architecture="BertForSequenceClassification",
        selection=Selection(),
        candidates=0,
        backbone_parameters=0,
        config={},
        sparse={n: entry(base.backbone_tensors[n]) for n in names},
        dense={},
        head={},
    )


def bytes_to_move(delta: Delta, dtype: torch.dtype, line: int) -> int:
    """The bytes that one exchange must read and write, where memory comes in lines of `line` bytes."""
    mask_bytes_a_line = line // dtype.itemsize // 8
    moved = 0
    for entry in delta.sparse.values():
        whole = entry.positions[: entry.positions.size // mask_bytes_a_line * mask_bytes_a_line]
        lines = int(whole.reshape(-1, mask_bytes_a_line).any(axis=1).sum())
        moved += entry.positions.nbytes + 2 * (lines * line + entry.values.size * dtype.itemsize)
    return moved


def _taking_turns(ways: Mapping[str, Way], turns: int) -> dict[str, float]:
    """Median seconds of each way, after one turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, way in ways.items():
            way.before()
            began = time.perf_counter()
            way.switch()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def _rows(title: str, found: Mapping[float, Mapping[str, float]]) -> Iterator[Row]:
    for kept, times in found.items():
        at = f"{title}, {kept:.0%} kept"
        for way, seconds in times.items():
            if way == "bandwidth":
                yield Row(f"{at}: large copy", seconds / 1e9, "GB/s")
            else:
                yield Row(f"{at}: {way}", seconds * 1e3, "ms")
        for way, against in (("exchange", "limit"), ("exchange", "copy_"), ("exchange, A -> B", "exchange")):
            yield Row(f"{at}: {way}, against {against}", times[way] / times[against], "ratio", f"{at}: {against}")


def _table(title: str, found: Mapping[float, Mapping[str, float]]) -> Table:
    table = Table(title=f"{title}: ms", title_justify="left")
    table.add_column("kept")
    for kept in found:
        table.add_column(f"{kept:.0%}", justify="right")
    for way in next(iter(found.values())):
        scale = 1e-9 if way == "bandwidth" else 1e3
        label = "large copy, GB/s" if way == "bandwidth" else way
        table.add_row(label, *(f"{times[way] * scale:,.3g}" for times in found.values()))
    table.add_row("exchange / limit", *(f"{t['exchange'] / t['limit']:.2f}" for t in found.values()))
    table.add_row("exchange / copy_", *(f"{t['exchange'] / t['copy_']:.2f}" for t in found.values()))
    return table


def _peft(shape: Shape, turns: int) -> Iterator[Row]:
    """Milliseconds of peft's `set_adapter` in its own environment; no row if that cannot be made."""
    child = f"from benchmarks import swap; swap.print_set_adapter({dict(shape.config)}, {turns})"
    try:
        python = _peft_environment()
        done = subprocess.run([python, "-c", child], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        print(f"no row for peft: {lines[-1] if lines else error}", file=sys.stderr)
        return
    answer = json.loads(done.stdout.splitlines()[-1])
    yield Row(f"{shape.name}: peft {answer['version']} set_adapter, LoRA r = 8", answer["seconds"] * 1e3, "ms")


def print_set_adapter(config: Mapping[str, Any], turns: int) -> None:
    """Run inside peft's environment: print the median seconds of a switch between two LoRA adapters."""
    import peft

    lora = peft.LoraConfig(r=8, target_modules=["query", "key", "value", "dense"])
    model = peft.get_peft_model(BertModel(BertConfig(**config)), lora, adapter_name="a")
    model.add_adapter("b", lora)
    way = Way(lambda: model.set_adapter("b"), before=lambda: model.set_adapter("a"))
    seconds = _taking_turns({"set_adapter": way}, turns)["set_adapter"]
    print(json.dumps({"version": peft.__version__, "seconds": seconds}))


def _peft_environment() -> Path:
    """The interpreter of an environment that adds peft to the packages of the present environment."""
    data = Path(os.environ.get("KEN_DATA_DIR") or Path.cwd() / ".ken")
    place = data.expanduser().absolute() / "peers" / "peft"
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        venv.create(place, with_pip=True, clear=True)
        seen = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
        Path(seen, "this.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "peft", "accelerate"]
        subprocess.run(install, capture_output=True, text=True, check=True)
        (place / "installed").touch()
    return python


def _others(rows: list[Row]) -> Table:
    table = Table(title="beside it", title_justify="left")
    table.add_column("what")
    table.add_column("ms", justify="right")
    for row in rows:
        if "peft" in row.name:
            table.add_row(row.name, f"{row.value:.3g}")
    return table


if __name__ == "__main__":
    main()
