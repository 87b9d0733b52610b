"""Random batches of many tasks, some of which fail: whoever is answered gets its own dedicated model's answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

from benchmarks.many_tasks import derive
from ken_core import Checkpoint, Delta, ResidentModel, apply, open_base, open_tuned
from ken_core.entries import LowRank
from ken_core.heads import graft_split
from ken_core.mixing.model import MixedModel
from ken_core.tokenization import Encoder
from serving.engine.batch import Batch, Group
from serving.engine.costs import BatchCost
from serving.engine.crew import Crew
from serving.engine.exchange import Exchange
from serving.engine.executor import Ran
from serving.engine.mixed import Mixed
from serving.engine.window import Limits
from serving.pipelines import PIPELINES
from serving.pipelines.base import TaskSpec
from serving.pipelines.text_classification import TextClassification
from serving.telemetry.metrics import Metrics
from serving.tiers.loaded import Loaded
from tests.tiny_checkpoints import TEXTS, write_base, write_tuned

TASKS = 50
LABELS = "abcdefgh"
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.005}
"""Largest difference of a logit, as a share of the largest logit."""
CLASSIFY = PIPELINES["text-classification"]


class Broken(TextClassification):
    """A kind whose head raises."""

    def run_head(self, *_: Any) -> Any:
        raise ZeroDivisionError("no head")


class Estate:
    """Many tasks on one base, the executor that mixes them, and what their dedicated models answer.

    Attributes:
        answers: logits, (tasks, texts, labels).
        fails: whether the backbone raises in the middle of its next pass.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        base = write_base(folder / "base")
        BertModel.from_pretrained(base).to(dtype).save_pretrained(base)
        tuned = open_tuned(str(write_tuned(base, folder / "tuned", LABELS, seed=1)))
        self.deltas = list(tasks_of(open_base(str(base)), tuned))
        self.answers = np.stack([dedicated(base, delta, folder / str(n), dtype) for n, delta in enumerate(self.deltas)])
        self.allowed = ALLOWED[dtype] * float(np.abs(self.answers).max())
        self.resident = ResidentModel(open_base(str(base)))
        self.mixed = MixedModel(self.resident)
        encoder = Encoder(self.resident.checkpoint, tuned.config, {})
        self.spec = TaskSpec(tuned.config, encoder)
        self.rows = encoder(TEXTS)
        self.tasks = [self.load(number) for number in range(TASKS)]
        limits, cost, metrics = Limits(), BatchCost(), Metrics("random")
        exchange = Exchange(self.resident, self.renew, limits, cost, metrics)
        self.executor = Mixed(self.resident, self.mixed, encoder.pad_id, exchange, limits, cost, metrics)
        self._crew = Crew(1, torch.get_num_threads())
        self.fails = False
        self.resident.backbone.get_submodule("encoder.layer.1").register_forward_pre_hook(self._perhaps_fail)

    def run(self, batch: Batch) -> Ran:
        with self._crew.lock:
            turn = self._crew.begin()
        with turn, torch.inference_mode():
            return self.executor.run(batch, turn)

    def load(self, number: int) -> Loaded:
        delta = self.deltas[number]
        attached = self.mixed.attach(delta)
        model = graft_split(self.resident.backbone, delta.architecture, delta.config, attached.head)
        return Loaded(str(number), attached, model, delta.kind, CLASSIFY.kind, self.spec)

    def renew(self, task: Loaded) -> None:
        task.take_over(self.load(int(task.digest)))

    def _perhaps_fail(self, *_: Any) -> None:
        if self.fails:
            self.fails = False
            raise MemoryError("no room for this pass")


def tasks_of(base: Checkpoint, tuned: Checkpoint) -> Iterator[Delta]:
    """One in five shifts a matrix by factors."""
    name = "encoder.layer.0.attention.self.query.weight"
    for number, delta in enumerate(derive(base, tuned, TASKS)):
        if number % 5:
            yield delta
            continue
        rows, columns = delta.sparse[name].shape
        generator = torch.Generator().manual_seed(number)
        a, b = (torch.randn(shape, generator=generator) for shape in ((2, columns), (rows, 2)))
        sparse = {n: entry for n, entry in delta.sparse.items() if n != name}
        yield replace(delta, sparse=sparse, lowrank={name: LowRank(a, b, 0.1)})


def dedicated(base: Path, delta: Delta, folder: Path, dtype: torch.dtype) -> np.ndarray:
    """What a whole model of a delta answers to each text alone: (texts, labels)."""
    apply(open_base(str(base)), delta, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0].float().numpy() for text in TEXTS]
    return np.stack(logits)


@pytest.fixture(scope="module", params=ALLOWED, ids=str)
def estate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Estate:
    return Estate(tmp_path_factory.mktemp("many"), request.param)


def test_a_neighbours_answer_would_be_noticed(estate: Estate) -> None:
    for logits in estate.answers.swapaxes(0, 1):
        apart = np.abs(logits[:, None] - logits[None, :]).max(2)
        assert apart[~np.eye(TASKS, dtype=bool)].min() > 2 * estate.allowed


@pytest.mark.parametrize(
    ("seed", "batches"), [(0, 20), *(pytest.param(seed, 112, marks=pytest.mark.slow) for seed in range(1, 31))]
)
def test_every_answer_is_its_own_dedicated_models_whatever_fails_beside_it(
    estate: Estate, seed: int, batches: int
) -> None:
    """The slow ones are 10,080 batches in all."""
    dice = np.random.default_rng(seed)
    mixed = answered = 0
    for _ in range(batches):
        numbers = dice.choice(TASKS, dice.integers(1, 17), replace=False)
        texts = [dice.integers(len(TEXTS), size=dice.integers(1, 4)) for _ in numbers]
        broken = dice.random(len(numbers)) < 0.05
        estate.fails = fails = bool(dice.random() < 0.1)
        for number in numbers[dice.random(len(numbers)) < 0.02]:  # no exchange can spoil factors
            estate.tasks[number].attached.spoiled = not estate.deltas[number].lowrank
        groups = [
            Group(estate.tasks[number], Broken() if fails_alone else CLASSIFY, [estate.rows[text] for text in asked])
            for number, asked, fails_alone in zip(numbers, texts, broken, strict=True)
        ]
        spoiled = any(group.task.attached.spoiled for group in groups)
        ran = estate.run(Batch(groups))
        estate.fails = False
        mixed += ran.mixed
        unexplained = 0
        for number, asked, fails_alone, outcome in zip(numbers, texts, broken, ran.outcomes, strict=True):
            if isinstance(outcome, Exception):
                unexplained += not fails_alone
                continue
            assert not fails_alone
            assert np.abs(np.stack(outcome) - estate.answers[number][asked]).max() <= estate.allowed
            answered += 1
        assert unexplained <= fails  # a pass that fails by exchange fails one group
        some_have_factors_alone = any(estate.deltas[number].lowrank for number in numbers)
        assert not (ran.mixed and (fails or spoiled)) or some_have_factors_alone
        for number in numbers:  # as if evicted and asked for again
            if estate.tasks[number].attached.spoiled:
                estate.renew(estate.tasks[number])
    assert mixed > batches / 2
    assert answered > 5 * batches
    estate.resident.revert()
    assert not estate.resident.verify()
