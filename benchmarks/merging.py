"""Fine-tunes of one base merged into one model: from whole deltas and small ones, beside mergekit on whole checkpoints.

    python -m benchmarks.merging [--quick] [--json FILE] [--texts FOLDER] [--models FOLDER]

The models are MiniLM-L6 fine-tuned on TREC, if `--texts` holds it, and the demonstration's three tasks (trained on
first use). Each merge is one backbone for all of them. It is judged by the accuracy on each task's test text (at most
300) with that task's own head. Ours are made of deltas that keep everything, of deltas that keep 10 %, and of `svd`
deltas of a megabyte. mergekit merges the whole checkpoints with the same weights and densities, in an environment of
its own that is made on first use under the data directory (`peers/`); `--quick` takes it only if it exists.

Where nothing is dropped at random and nothing is trimmed, both must give the same weights: the last table has the
largest difference of a weight, and how many weights differ. Only exact ties between signs may: the base's value stays
here, and the positive sign wins there. At smaller densities merges differ: TIES trims over all tensors here, as in its
paper, and within each tensor there; DARE divides by the density here, as in its paper, and there by what keeps a
tensor's L1 norm.
`--quick`: two tasks, two recipes, 50 texts.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.fine_tunes import Task, more_tasks, tasks, with_fine_tune_options
from benchmarks.peers.environments import MERGEKIT
from benchmarks.peers.mergekit_runs import Mergekit
from benchmarks.peers.process import PeerError
from benchmarks.report import Row, report, with_shared_options
from ken_core import Budget, DeltaFile, Extraction, MergeRecipe, Part, Selection, combine, deltafile, merge, open_base
from ken_core.checkpoint import Checkpoint, open_tuned
from ken_core.evaluate import classify, label_ids
from ken_core.file_size import write_within
from ken_core.tokenization import Encoder
from serving.demo.prepare import demo_base

_TASKS = ("trec", "news", "genres", "languages")
_MOST_TEXTS = 300
_SVD_BYTES = 1_000_000
_ROUNDING = 1e-7
_TITLE = "one backbone for all tasks"

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Way:
    """A recipe and the weight of every part, with the name of the method and its options for mergekit."""

    name: str
    recipe: MergeRecipe
    weight: float
    theirs: str
    options: Mapping[str, bool]

    @property
    def parameters(self) -> dict[str, float]:
        """Of each fine-tune, for mergekit."""
        return {"weight": self.weight, **({"density": self.recipe.density} if self.theirs != "task_arithmetic" else {})}


_LINEAR = Way("linear, weight 0.5", MergeRecipe(), 0.5, "task_arithmetic", {})
_TIES = Way("ties, density 0.2", MergeRecipe("ties", 0.2), 1.0, "ties", {"normalize": True})
_WAYS = (
    Way("linear, weight 0.25", MergeRecipe(), 0.25, "task_arithmetic", {}),
    _LINEAR,
    _TIES,
    Way("ties, density 0.2, summed, weight 0.5", MergeRecipe("ties", 0.2, False), 0.5, "ties", {"normalize": False}),
    Way("dare-linear, weight 0.5, density 0.5", MergeRecipe("dare-linear", 0.5), 0.5, "dare_linear", {"rescale": True}),
    Way(
        "dare-ties, density 0.5",
        MergeRecipe("dare-ties", 0.5),
        1.0,
        "dare_ties",
        {"rescale": True, "normalize": True},
    ),
)
_EXACT = (_LINEAR, Way("ties, density 1", MergeRecipe("ties"), 1.0, "ties", {"normalize": True}))
"""Ways in which both must give the same weights."""


@dataclass(frozen=True)
class Measured:
    """A merge of one sort of parts: the accuracy on each task."""

    way: str
    parts: str
    accuracies: Mapping[str, float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies.values())


@dataclass(frozen=True)
class Findings:
    """What was measured, and the largest differences from mergekit's weights."""

    measured: Sequence[Measured]
    differences: Sequence[Row]


class Judge:
    """A task's test text and head, for which any backbone of its base can be tried."""

    def __init__(self, task: Task, tuned: Checkpoint, texts: int) -> None:
        self._examples = task.test[:texts]
        self._model = copy.deepcopy(tuned.model)
        self._encoder = Encoder(tuned, tuned.config, {})

    def accuracy(self, backbone: Tensors) -> float:
        self._model.base_model.load_state_dict(backbone)
        answers = classify(self._model, self._encoder, [example.input for example in self._examples])
        return float((answers == label_ids(self._model, self._examples)).mean())


class Merging:
    """The fine-tunes, their deltas of each sort, and judges of their tasks."""

    def __init__(self, base: Checkpoint, chosen: Sequence[Task], models: Path, folder: Path, texts: int) -> None:
        self.base, self._folder = base, folder
        self.names = [task.name for task in chosen]
        self.tuned = [open_tuned(str(task.fine_tune(0, models))) for task in chosen]
        self._judges = [Judge(task, one, texts) for task, one in zip(chosen, self.tuned, strict=True)]
        self.parts: dict[str, list[DeltaFile]] = {"all": [], "10 %": [], "svd, 1 MB": []}
        for name, one in zip(self.names, self.tuned, strict=True):
            extraction = Extraction(base, one)
            for sort, share in (("all", 1.0), ("10 %", 0.1)):
                kept = extraction.delta(Selection(budget=Budget(fraction=share)))
                self.parts[sort].append(deltafile.write(kept, base, folder / f"{name}-{share}.ken"))
            self.parts["svd, 1 MB"].append(write_within(extraction, base, _SVD_BYTES, folder / f"{name}-svd.ken")[1])

    def backbone(self, way: Way, sort: str) -> Tensors:
        """Our merge, written and read back."""
        parts = [Part(deltafile.load(f.path, self.base), way.weight, f.digest, f.name) for f in self.parts[sort]]
        file = deltafile.write(combine(self.base, parts, way.recipe), self.base, self._folder / "merged.ken")
        return merge(self.base, deltafile.load(file.path, self.base))

    def measured(self, way: str, parts: str, backbones: Sequence[Tensors]) -> Measured:
        """The accuracy of each task with its backbone, or with the one for all."""
        each = backbones if len(backbones) > 1 else list(backbones) * len(self._judges)
        found = {n: j.accuracy(b) for n, j, b in zip(self.names, self._judges, each, strict=True)}
        return Measured(way, parts, found)

    def unmerged(self) -> Iterator[Measured]:
        yield self.measured("no merge", "whole checkpoints", [one.backbone_tensors for one in self.tuned])
        for sort, files in self.parts.items():
            if sort != "all":
                alone = [merge(self.base, deltafile.load(file.path, self.base)) for file in files]
                yield self.measured("no merge", sort, alone)

    def mergekit(self, python: Path) -> Mergekit:
        """mergekit on the backbones' files, which are written here."""

        def written(name: str, one: Checkpoint) -> Path:
            file = self._folder / f"{name}.safetensors"
            save_file({n: t.contiguous() for n, t in one.backbone_tensors.items()}, file, {"format": "pt"})
            return file

        files = [written(name, one) for name, one in zip(self.names, self.tuned, strict=True)]
        return Mergekit(python, written("base", self.base), files)


def merged_by(peer: Mergekit, way: Way) -> Tensors:
    with TemporaryDirectory() as folder:
        return peer.merged(way.theirs, way.parameters, way.options, Path(folder))


def differences(merging: Merging, peer: Mergekit, way: Way) -> Iterator[Row]:
    """How far the weights of both merges are from each other, and how many differ by more than rounding."""
    ours, theirs = merging.backbone(way, "all"), merged_by(peer, way)
    apart = torch.cat([(ours[name].double() - tensor.double()).abs().reshape(-1) for name, tensor in theirs.items()])
    yield Row(f"{way.name}: largest difference of a weight from mergekit's", float(apart.max()), "1")
    yield Row(f"{way.name}: weights that differ by more than {_ROUNDING}", float((apart > _ROUNDING).sum()), "1")


def measure(merging: Merging, ways: Sequence[Way], exact: Sequence[Way], peers: Path, *, install: bool) -> Findings:
    found = [*merging.unmerged()]
    found += [merging.measured(way.name, sort, [merging.backbone(way, sort)]) for way in ways for sort in merging.parts]
    try:
        peer = merging.mergekit(MERGEKIT.python(peers, install=install))
    except PeerError as error:
        print(f"without mergekit: {error}")
        return Findings(found, [])
    print(peer.versions)
    found += [merging.measured(way.name, "whole checkpoints (mergekit)", [merged_by(peer, way)]) for way in ways]
    return Findings(found, [row for way in exact for row in differences(merging, peer, way)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments = with_shared_options(with_fine_tune_options(parser)).parse_args()
    known = {task.name: task for task in (*tasks(arguments.texts), *more_tasks())}
    chosen = [known[name] for name in _TASKS if name in known]
    ways, exact, texts = _WAYS, _EXACT, _MOST_TEXTS
    if arguments.quick:
        chosen, ways, exact, texts = chosen[-3:-1], (_LINEAR, _TIES), _EXACT[:1], 50
    with TemporaryDirectory() as folder:
        merging = Merging(open_base(demo_base()), chosen, arguments.models, Path(folder), texts)
        peers = arguments.models.parent / "peers"
        found = measure(merging, ways, exact, peers, install=not arguments.quick)
    report(_TITLE, list(_rows(found)), arguments.json, list(_tables(found, merging.names)))


def _rows(found: Findings) -> Iterator[Row]:
    for one in found.measured:
        for task, accuracy in one.accuracies.items():
            yield Row(f"{one.way}, {one.parts}, {task}: accuracy", accuracy, "share")
        yield Row(f"{one.way}, {one.parts}: mean accuracy", one.mean, "share")
    yield from found.differences


def _tables(found: Findings, names: Sequence[str]) -> Iterator[Table]:
    table = Table("way", "merged from", *names, "mean", title=_TITLE, title_justify="left")
    for one in sorted(found.measured, key=lambda one: one.way != "no merge"):
        accuracies = (one.accuracies[name] for name in names)
        table.add_row(one.way, one.parts, *(f"{accuracy:.3f}" for accuracy in (*accuracies, one.mean)))
    yield table
    if found.differences:
        differences = Table("the same weights as mergekit's?", "", title_justify="left")
        for row in found.differences:
            differences.add_row(row.name, f"{row.value:.2g}")
        yield differences


if __name__ == "__main__":
    main()
