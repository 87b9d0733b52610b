"""What pruning does to a language model: perplexity and agreement against the share that is kept, by every method.

"Kept" is the share of all parameters that a file holds. It differs from the share that was asked for: `ken-grid` keeps
as many of each row, whatever its width, and without embeddings the share is one of the other tensors.

    python -m benchmarks.decoders [--quick] [--json FILE] [--models FOLDER]

The model is SmolLM2-135M-Instruct (538 MB in float32), all of whose weights are fine-tuned on functions of Python's
standard library and on WordNet's definitions (`benchmarks.language_tasks`; trained on first use, about half an hour on
2 cores). A delta is written, read back and judged on test text that was neither trained on nor fitted to, by the tokens
of the completions alone: perplexity; the share of the fine-tune's gain over its base that is kept, in nats; and
agreement, the share of tokens whose likeliest one is the fine-tune's, given the text so far. Tasks are measured side by
side, one on each core. `--quick`: the first 2 of the 30 layers, 32 functions to train on, 20 to judge by, few ways.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import exp
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.progress import Progress
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.fine_tunes import with_fine_tune_options
from benchmarks.language_tasks import LanguageTask, language_tasks
from benchmarks.report import Row, report, with_shared_options
from ken_core import Budget, DeltaFile, Extraction, ResidentModel, Selection, deltafile, graft, open_base, open_tuned
from ken_core.checkpoint import Checkpoint, quiet
from ken_core.codings import Codec
from ken_core.errors import TooSmallError
from ken_core.file_size import write_within
from ken_core.language_examples import Completion
from ken_core.language_judges import judge_tokens
from ken_core.new_folder import new_folder
from ken_core.scales import fit_scales
from ken_core.selection import Method, Scope
from ken_core.tensor_filter import PRESETS
from ken_core.verdicts import TokenAnswers
from serving.demo.smollm2 import smollm2

_MB = 1e6
_SHARES = (0.01, 0.025, 0.05, 0.10, 0.25)
_WIDTH = 576
"""Of most rows of SmolLM2, by which `ken-grid`'s number of points is a share."""


@dataclass(frozen=True)
class Way:
    """A way to keep a share of a fine-tune, or, by `svd`, as many bytes as its file may take."""

    method: Method
    scope: Scope = "global"
    codec: Codec = "zstd"
    fitted: bool = False
    embeddings: bool = True
    shares: Sequence[float] = _SHARES[2:]
    megabytes: Sequence[float] = ()

    @property
    def name(self) -> str:
        parts = [self.method, *([] if self.method == "svd" else [self.scope]), self.codec]
        return ", ".join([*parts, *["fitted"] * self.fitted, *["without embeddings"] * (not self.embeddings)])


WAYS = (
    Way("magnitude", shares=_SHARES),
    Way("svd", codec="int4", shares=(), megabytes=(3, 6, 12, 24)),
    Way("ken", "row"),
    Way("random"),
    Way("ken-shift", "row"),
    Way("magnitude", "row"),
    Way("magnitude", codec="int4", shares=(0.025, 0.05, 0.10)),
    Way("magnitude", codec="int4", fitted=True, shares=_SHARES[:3]),
    Way("magnitude", embeddings=False),
    Way("ken-grid", "row", shares=(0.10,)),
)


@dataclass(frozen=True)
class Measured:
    """A file's answers to a task's test text; the base and the fine-tune have whole checkpoints.

    Attributes:
        asked: the share of parameters, or the megabytes, that were asked for.
        kept: the share of all parameters that the file holds; None: factors in their place.
    """

    task: str
    way: str
    asked: str
    kept: float | None
    nbytes: int
    perplexity: float
    gain: float
    """The share of the fine-tune's gain over its base, in nats a token, that is kept."""
    agreement: float


class Judge:
    """Answers a task's test text with deltas of its fine-tune, as a replica does."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint, task: LanguageTask) -> None:
        self._task, self._base = task, base
        self._resident = ResidentModel(open_base(str(base.folder)))
        self._ask = judge_tokens(tuned, task.test, task.recipe.max_length)
        self._of_base = self._answers(open_tuned(str(base.folder)).model)
        self._of_tuned = self._answers(tuned.model)
        self._whole = sum(t.nbytes for t in tuned.backbone_tensors.values())

    def ends(self) -> Iterator[Measured]:
        """The base and the fine-tune themselves."""
        yield self._measured("base", "", 0.0, 0, self._of_base)
        yield self._measured("fine-tune", "", 1.0, self._whole, self._of_tuned)

    def of(self, file: DeltaFile, way: Way, asked: str) -> Measured:
        delta = deltafile.read(file, self._base, self._resident.fingerprint.digest)
        attached = self._resident.attach(delta)
        self._resident.activate(attached)
        try:
            model = graft(self._resident.backbone, delta.architecture, delta.config, attached.head)
            return self._measured(way.name, asked, _kept(file), file.size, self._answers(model))
        finally:
            self._resident.revert()

    def _answers(self, model: torch.nn.Module) -> TokenAnswers:
        found = self._ask(model)  # type: ignore[arg-type]
        assert isinstance(found, TokenAnswers)
        return found

    def _measured(self, way: str, asked: str, kept: float | None, nbytes: int, found: TokenAnswers) -> Measured:
        base, tuned, loss = (float(one.losses.mean()) for one in (self._of_base, self._of_tuned, found))
        agreement = float(np.mean(found.best == self._of_tuned.best))
        return Measured(self._task.name, way, asked, kept, nbytes, exp(loss), (base - loss) / (base - tuned), agreement)


def _kept(file: DeltaFile) -> float | None:
    found = file.manifest
    return None if found.lowrank else found.stored / found.backbone_parameters


def measure(base: Path, task: LanguageTask, models: Path, ways: Sequence[Way] = WAYS) -> Iterator[Measured]:
    """The base, the fine-tune, and every way to keep a part of it."""
    ours, tuned = open_base(str(base)), open_tuned(str(task.fine_tune(base, models)))
    judge, extraction = Judge(ours, tuned, task), Extraction(ours, tuned)
    yield from judge.ends()
    texts = [e.prompt + e.completion for e in task.train if isinstance(e, Completion)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "delta.ken"
        for way in ways:
            for share in way.shares:
                delta = extraction.delta(_selection(way, share), way.codec)
                if way.fitted:
                    delta = fit_scales(ours, tuned, delta, texts)
                yield judge.of(deltafile.write(delta, ours, path, way.codec), way, f"{share:.3g}")
            for size in way.megabytes:
                try:
                    file = write_within(extraction, ours, int(size * _MB), path, way.codec, method=way.method)[1]
                except TooSmallError:
                    continue
                yield judge.of(file, way, f"{size:g} MB")


def _selection(way: Way, share: float) -> Selection:
    tensors = PRESETS["all" if way.embeddings else "no-embeddings"]
    if way.method == "ken-grid":
        return Selection(way.method, Budget("row", k=round(share * _WIDTH)), tensors=tensors)
    return Selection(way.method, Budget(way.scope, share), tensors=tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = with_fine_tune_options(with_shared_options(parser)).parse_args()
    chosen = [task.name for task in _tasks(options)]
    found: list[Measured] = []
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool, Progress(transient=True) as bar:
        row = bar.add_task("measuring fine-tunes", total=len(chosen))
        _base(options)
        for cells in pool.map(partial(_measured_apart, options), chosen):
            found += cells
            bar.advance(row)
    title = "what pruning does to SmolLM2-135M" + " (quick: 2 of its layers)" * options.quick
    report(title, list(rows_of(found)), options.json, [table_of(name, found) for name in chosen])


def _measured_apart(options: argparse.Namespace, name: str) -> list[Measured]:
    """The cells of one task, in a process of its own."""
    torch.set_num_threads(1)
    task = next(t for t in _tasks(options) if t.name == name)
    ways = [Way("magnitude", shares=_SHARES[-2:]), Way("random")] if options.quick else WAYS
    return list(measure(_base(options), task, options.models, ways))


def _base(options: argparse.Namespace) -> Path:
    options.models.mkdir(parents=True, exist_ok=True)
    whole = smollm2(options.models)
    return whole if not options.quick else _first_layers(whole, options.models / f"{whole.name}-2-layers")


def _first_layers(whole: Path, folder: Path) -> Path:
    if not folder.exists():
        with new_folder(folder) as new, quiet(whole):
            AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=2).save_pretrained(new)
            AutoTokenizer.from_pretrained(whole).save_pretrained(new)
    return folder


def _tasks(options: argparse.Namespace) -> list[LanguageTask]:
    found = language_tasks()
    return [replace(found[0], train=found[0].train[:32], test=found[0].test[:20])] if options.quick else found


def rows_of(found: Sequence[Measured]) -> Iterator[Row]:
    """The figures of all cells."""
    for one in found:
        name = ", ".join(filter(None, (one.task, one.way, one.asked)))
        yield Row(f"{name}: perplexity", one.perplexity, "1")
        yield Row(f"{name}: share of the gain that is kept", one.gain, "ratio", f"{one.task}, fine-tune")
        yield Row(f"{name}: agreement", one.agreement, "ratio", f"{one.task}, fine-tune")
        yield Row(f"{name}: bytes", one.nbytes, "B")
        if one.kept is not None:
            yield Row(f"{name}: share of all parameters that is kept", one.kept, "ratio", f"{one.task}, fine-tune")


def table_of(task: str, found: Sequence[Measured]) -> Table:
    """One row a cell."""
    table = Table("way", "asked for", title=task, title_justify="left")
    for column in ("kept", "MB", "perplexity", "gain kept", "agreement"):
        table.add_column(column, justify="right")
    for one in (one for one in found if one.task == task):
        figures = f"{one.nbytes / _MB:.1f}", f"{one.perplexity:.2f}", f"{one.gain:.1%}", f"{one.agreement:.1%}"
        table.add_row(one.way, one.asked, "" if one.kept is None else f"{one.kept:.1%}", *figures)
    return table


if __name__ == "__main__":
    main()
