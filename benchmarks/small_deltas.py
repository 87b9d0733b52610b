"""The smallest deltas: kept values as they are, kept values fitted to texts, and singular components, in as many bytes.

    python -m benchmarks.small_deltas [--quick] [--json FILE] [--models FOLDER]

The models are MiniLM-L6 fine-tuned on the demonstration's three tasks (trained on first use: two minutes on 2 cores).
`magnitude` keeps a fraction of all parameters with 4 bits a value; `fitted` scales these values by 256 of the texts
that the task was trained on, without their labels; `svd` keeps as much as fits the bytes of `magnitude`'s file. Each is
written, read back and compared with the full fine-tune on held-out text: accuracy, and the KL divergence of its answers
from the fine-tune's (nats). `--quick`: one task, two fractions.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.report import Row, report, with_shared_options
from ken_core import Budget, DeltaFile, Extraction, Selection, deltafile, merge, open_base
from ken_core.checkpoint import Checkpoint
from ken_core.file_size import write_within
from ken_core.scales import fit_scales
from ken_core.tokenization import Encoder, collate
from serving.demo.prepare import PreparedTask, demo_base, prepare
from serving.demo.texts import TASKS

_FRACTIONS = (0.01, 0.02, 0.04, 0.08, 0.16)
_BATCH = 32
_TITLE = "small deltas, 4 bits a number"


@dataclass(frozen=True)
class Measured:
    """One file: its bytes, the points of accuracy it loses, and how far its answers are from the fine-tune's."""

    task: str
    name: str
    bytes: int
    lost: float
    kl: float


class Judge:
    """A fine-tune's answers to held-out texts, with which other models' answers are compared."""

    def __init__(self, prepared: PreparedTask) -> None:
        self._model = prepared.tuned.model.eval()
        self._encoder = Encoder(prepared.tuned, prepared.tuned.config, {})
        encoded = self._encoder([e.input for e in prepared.held_out])
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        self._rows = [encoded[i] for i in order]
        names = self._model.config.label2id
        self._right = torch.tensor([names[prepared.held_out[i].label] for i in order])
        self._full = self._answers(self._model)

    def of(self, base: Checkpoint, file: DeltaFile) -> tuple[float, float]:
        """Points of accuracy lost, and the KL divergence."""
        model = copy.deepcopy(self._model)
        model.base_model.load_state_dict(merge(base, deltafile.load(file.path, base)))
        found = self._answers(model)
        kl = torch.nn.functional.kl_div(found, self._full, log_target=True, reduction="batchmean")
        return 100 * (self._accuracy(self._full) - self._accuracy(found)), float(kl)

    def _accuracy(self, answers: torch.Tensor) -> float:
        return float((answers.argmax(dim=1) == self._right).float().mean())

    def _answers(self, model: PreTrainedModel) -> torch.Tensor:
        """Log probabilities, shape (texts, labels)."""
        found = []
        with torch.inference_mode():
            for start in range(0, len(self._rows), _BATCH):
                batch = collate(self._rows[start : start + _BATCH], self._encoder.pad_id, torch.device("cpu"))
                found.append(model(**batch).logits.float().log_softmax(dim=1))
        return torch.cat(found)


def measure(base: Checkpoint, prepared: PreparedTask, fractions: Sequence[float]) -> Iterator[Measured]:
    """Every way to store one fine-tune."""
    judge, extraction = Judge(prepared), Extraction(base, prepared.tuned)
    texts = [example.input for example in prepared.task.split()[0]]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "delta.ken"
        for fraction in fractions:
            kept = extraction.delta(Selection("magnitude", Budget(fraction=fraction)))
            plain = deltafile.write(kept, base, path, "int4")
            yield Measured(prepared.task.name, f"magnitude {fraction:.0%}", plain.size, *judge.of(base, plain))
            fitted = deltafile.write(fit_scales(base, prepared.tuned, kept, texts), base, path, "int4")
            yield Measured(prepared.task.name, f"fitted {fraction:.0%}", fitted.size, *judge.of(base, fitted))
            _, cut = write_within(extraction, base, plain.size, path)
            yield Measured(prepared.task.name, "svd", cut.size, *judge.of(base, cut))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(".ken/demo"), help="folder of the fine-tunes")
    arguments = with_shared_options(parser).parse_args()
    base = open_base(demo_base())
    tasks = prepare(base, arguments.models, TASKS[:1] if arguments.quick else TASKS)
    fractions = _FRACTIONS[1:3] if arguments.quick else _FRACTIONS
    found = [row for task in tasks for row in measure(base, task, fractions)]
    report(_TITLE, list(_rows(found)), arguments.json, [_table(found)])


def _rows(found: Sequence[Measured]) -> Iterator[Row]:
    for one in found:
        name = f"{one.task}, {one.name}, {one.bytes:,} bytes"
        yield Row(f"{name}: lost", one.lost, "points")
        yield Row(f"{name}: KL divergence", one.kl, "nats")


def _table(found: Sequence[Measured]) -> Table:
    table = Table("task", "delta", "kB", "points lost", "KL", title=_TITLE, title_justify="left")
    for one in found:
        table.add_row(one.task, one.name, f"{one.bytes / 1e3:,.0f}", f"{one.lost:+.1f}", f"{one.kl:.4f}")
    return table


if __name__ == "__main__":
    main()
