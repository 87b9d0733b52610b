"""Thousands of activations of fifty deltas, with failures at random moments: every answer is a dedicated model's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedModel,
)

from ken_core import deltafile
from ken_core.bits import same_bits
from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.delta import Delta, apply
from ken_core.deltafile import CODECS, DeltaFile
from ken_core.errors import DeltaFormatError, ExchangeError
from ken_core.extraction import extract
from ken_core.heads import Grafted, graft_split
from ken_core.kernels import Exchange, Packed, Switch, exchange_for, switch_for
from ken_core.resident import Attached, ResidentModel
from ken_core.selection import Budget, Selection

ACTIVATIONS = [2_400, pytest.param(10_000, marks=pytest.mark.slow)]
"""Of all bases and dtypes together."""
DELTAS_OF_A_BASE = 25
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BASES = ["gpt2", "bert"]
SELECTIONS = [
    Selection(),
    Selection(budget=Budget(fraction=1.0)),
    Selection("ken-shift", Budget("row", 0.3)),
    Selection("random", Budget("row", k=1), seed=7),
]
FINE_TUNES: dict[str, list[tuple[type[PreTrainedModel], dict[str, Any]]]] = {
    "gpt2": [
        (GPT2LMHeadModel, {}),  # its output layer is tied to the embedding
        (GPT2ForSequenceClassification, {"num_labels": 3}),
        (GPT2LMHeadModel, {"resize": 75}),  # tied, and the embedding comes whole
        (GPT2ForSequenceClassification, {"num_labels": 2, "resize": 64}),
        (GPT2ForTokenClassification, {"num_labels": 4}),
        (GPT2Model, {}),
    ],
    "bert": [
        (BertForSequenceClassification, {"num_labels": 3}),  # brings the pooler whole, which the base's files lack
        (BertForMaskedLM, {}),
        (BertForTokenClassification, {"num_labels": 5}),
        (BertForMaskedLM, {"resize": 101}),
        (BertForQuestionAnswering, {}),
    ],
}
ERRORS: list[Callable[[], BaseException]] = [
    lambda: RuntimeError("the device is on fire"),
    lambda: torch.OutOfMemoryError("no room left"),
    lambda: MemoryError("no room left"),
    lambda: KeyboardInterrupt(),
]


@dataclass(frozen=True)
class Task:
    """A delta file, and the answers of a dedicated model made from it."""

    file: DeltaFile
    answers: dict[torch.dtype, torch.Tensor]


@dataclass(frozen=True)
class Estate:
    """A base, its own answers, and its tasks."""

    folder: Path
    answers: dict[torch.dtype, torch.Tensor]
    tasks: list[Task]


def answer(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**batch)[0].clone()


def answer_of_the_head(model: Grafted, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """From an output that the backbone has computed before."""
    with torch.inference_mode():
        return model(model.whole.base_model(**batch, return_dict=True), batch)[0].clone()


def dedicated(architecture: str, folder: Path, batch: dict[str, torch.Tensor]) -> dict[torch.dtype, torch.Tensor]:
    """The answers of a dedicated model in each serving dtype."""
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    stored = [(parameter, parameter.data) for parameter in model.parameters()]
    answers = {}
    for dtype in DTYPES:
        for parameter, data in stored:
            # a copy: on the mapped file weights lie unaligned, which may change the order of additions
            parameter.data = data.to(dtype, copy=True)
        answers[dtype] = answer(model, batch)
    return answers


@pytest.fixture(scope="module")
def few_tokens() -> dict[str, torch.Tensor]:
    """Two sequences within every task's vocabulary, one of them padded."""
    ids = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture(scope="module")
def estates(tiny_base, save_random, save_noisy, few_tokens, tmp_path_factory) -> dict[str, Estate]:
    """Fifty deltas of two bases: of every kind of head, selection and codec."""
    config = GPT2Config(
        vocab_size=70, n_embd=16, n_layer=2, n_head=2, n_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=1
    )
    bases = {"gpt2": save_random(GPT2Model, config), "bert": save_noisy(BertForMaskedLM, tiny_base)}

    def task(base: Checkpoint, number: int) -> Task:
        out, fine_tunes = tmp_path_factory.mktemp("task"), FINE_TUNES[base.config.model_type]
        model_class, options = fine_tunes[number % len(fine_tunes)]
        tuned = open_tuned(str(save_noisy(model_class, base.folder, seed=number, **options)))
        delta = extract(base, tuned, SELECTIONS[number % len(SELECTIONS)])
        file = deltafile.write(delta, base, out / "task.ken", CODECS[number % len(CODECS)])
        apply(base, deltafile.load(file.path, base), out / "applied")
        return Task(file, dedicated(delta.architecture, out / "applied", few_tokens))

    def estate(folder: Path) -> Estate:
        base = open_base(str(folder))
        own = dedicated(type(base.model).__name__, folder, few_tokens)
        return Estate(folder, own, [task(base, number) for number in range(DELTAS_OF_A_BASE)])

    return {name: estate(bases[name]) for name in BASES}


class FailingExchanges:
    """Gives real kernels; if an error is armed, the next exchange stops at a random word and raises that error."""

    def __init__(self, chance: random.Random) -> None:
        self.armed: BaseException | None = None
        self._chance = chance

    def __call__(self, device: torch.device, dtype: torch.dtype) -> Exchange:
        real = exchange_for(device, dtype)

        def exchange(weights: torch.Tensor, packed: Packed) -> None:
            error, self.armed = self.armed, None
            if error is None:
                real(weights, packed)
                return
            real(weights, Packed(packed.words, packed.values, self._begun(packed.chunks)))
            raise error

        return exchange

    def switch(self, device: torch.device, dtype: torch.dtype) -> Switch:
        real = switch_for(device, dtype)

        def switch(weights: torch.Tensor, leaving: Packed, entering: Packed) -> None:
            error, self.armed = self.armed, None
            if error is None:
                real(weights, leaving, entering)
                return
            parts = (Packed(p.words, p.values, self._begun(p.chunks)) for p in (leaving, entering))
            real(weights, *parts)
            raise error

        return switch

    def _begun(self, chunks: torch.Tensor) -> torch.Tensor:
        """Some chunks, the last of them in part."""
        begun = chunks[: self._chance.randint(0, len(chunks))].clone()
        if len(begun):
            begun[-1, 2] = self._chance.randint(0, int(begun[-1, 2]))
        return begun


@contextmanager
def memory_for(allocations: float, error: BaseException | None = None) -> Iterator[list[int]]:
    """A block in which only so many arrays and tensors can be made; the next one raises. Yields how many were made."""
    made = [0]

    def limited(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if made[0] >= allocations and error is not None:
                raise error
            made[0] += 1
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", limited(torch.Tensor.to))
        patch.setattr(np, "concatenate", limited(np.concatenate))
        yield made


class Life:
    """A resident model whose deltas, at random, take turns, are attached anew, fail and are damaged."""

    def __init__(self, estate: Estate, dtype: torch.dtype, batch: dict[str, torch.Tensor], folder: Path) -> None:
        self.chance = random.Random(f"{estate.folder.name} {dtype}")
        self.exchanges = FailingExchanges(self.chance)
        self.resident = ResidentModel(
            open_base(str(estate.folder)),
            dtype=dtype,
            exchange_factory=self.exchanges,
            switch_factory=self.exchanges.switch,
        )
        self.estate, self.dtype, self.batch = estate, dtype, batch
        self.damaged = folder / "damaged.ken"
        self.attached: list[Attached] = []
        self.models: list[Grafted] = []
        for number in range(len(estate.tasks)):
            self.attached.append(self.attach(number))
            self.models.append(self.graft(number))
        self.active: int | None = None
        self.checked = self.failed_exchanges = self.failed_attachments = self.refused_files = 0

    def decoded(self, number: int) -> Delta:
        """Read a delta from its file, whatever is active in the arena meanwhile."""
        return deltafile.read(
            self.estate.tasks[number].file, self.resident.checkpoint, self.resident.fingerprint.digest
        )

    def attach(self, number: int) -> Attached:
        return self.resident.attach(self.decoded(number), materialised=self.chance.random() < 0.4)

    def graft(self, number: int) -> Grafted:
        described = self.estate.tasks[number].file.manifest
        head = self.attached[number].head
        return graft_split(self.resident.backbone, described.architecture, described.config, head)

    def renew(self, number: int) -> None:
        self.attached[number] = self.attach(number)
        self.models[number] = self.graft(number)

    def activate(self, number: int | None) -> None:
        self.resident.activate(None if number is None else self.attached[number])
        self.active = number

    def check(self) -> None:
        """Check that the answer is that of the active delta's dedicated model, or of the base."""
        if self.active is None:
            assert self.resident.active is None
            found, expected = answer(self.resident.backbone, self.batch), self.estate.answers
        else:
            assert self.resident.active is self.attached[self.active]
            found = answer(self.models[self.active].whole, self.batch)
            expected = self.estate.tasks[self.active].answers
            by_the_head = answer_of_the_head(self.models[self.active], self.batch)
            assert same_bits(by_the_head, expected[self.dtype]), f"the head of task {self.active} answers otherwise"
        assert same_bits(found, expected[self.dtype]), f"task {self.active} answers otherwise than its own model"
        self.checked += 1

    def fail_an_exchange(self, number: int) -> None:
        """Fail on the way from the active task to another: the base is back, and spoiled deltas are attached anew."""
        involved = {n for n in (self.active, number) if n is not None}
        if number == self.active or all(self.attached[n].materialised for n in involved):
            return
        error = self.chance.choice(ERRORS)()
        self.exchanges.armed = error
        with pytest.raises(ExchangeError if isinstance(error, Exception) else KeyboardInterrupt):
            self.resident.activate(self.attached[number])
        self.active = None
        self.check()
        spoiled = [n for n in involved if self.attached[n].spoiled]
        assert spoiled
        for n in spoiled:
            self.renew(n)
        self.failed_exchanges += 1

    def run_out_of_memory(self, number: int) -> None:
        """Fail while a task is attached; the active task goes on."""
        delta, materialised = self.decoded(number), self.chance.random() < 0.4
        with memory_for(float("inf")) as needed:
            self.resident.attach(delta, materialised=materialised)
        error = self.chance.choice([MemoryError(), torch.OutOfMemoryError()])
        with memory_for(self.chance.randrange(needed[0]), error), pytest.raises(type(error)):
            self.resident.attach(delta, materialised=materialised)
        self.check()
        self.failed_attachments += 1

    def refuse_a_damaged_file(self, number: int) -> None:
        """Flip a bit of a file's streams; the active task goes on."""
        data = bytearray(self.estate.tasks[number].file.path.read_bytes())
        streams = 8 + int.from_bytes(data[:8], "little")
        data[self.chance.randrange(streams, len(data))] ^= 1 << self.chance.randrange(8)
        self.damaged.write_bytes(data)
        with pytest.raises(DeltaFormatError, match="sha256"):
            deltafile.load(self.damaged, self.resident.checkpoint)
        self.check()
        self.refused_files += 1

    def take_a_turn(self) -> None:
        number = self.chance.randrange(len(self.attached))
        happening = self.chance.random()
        if happening < 0.05:
            self.fail_an_exchange(number)
        elif happening < 0.07:
            self.run_out_of_memory(number)
        elif happening < 0.08:
            self.refuse_a_damaged_file(number)
        elif happening < 0.10 and number != self.active:
            self.renew(number)
        elif happening < 0.14:
            self.activate(None)
            self.check()
        self.activate(number)
        self.check()


def test_a_whole_tensor_is_decoded_while_another_of_its_shape_is_active(estates):
    """Which tensors a file may bring whole depends on the base's shapes, not on those of the active delta."""
    estate = estates["gpt2"]
    resident = ResidentModel(open_base(str(estate.folder)))
    files = [task.file for task in estate.tasks if "wte.weight" in task.file.manifest.dense]
    shapes = [file.manifest.dense["wte.weight"].shape for file in files]
    first, *others = (file for file, shape in zip(files, shapes, strict=True) if shape == shapes[0])
    assert others

    def decoded(file: DeltaFile) -> Delta:
        return deltafile.read(file, resident.checkpoint, resident.fingerprint.digest)

    resident.activate(resident.attach(decoded(first)))
    for file in others:
        assert decoded(file).dense


def stored_bytes(resident: ResidentModel) -> dict[int, bytes]:
    """All memory that holds the backbone's weights, to the last byte of padding."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in resident.backbone.state_dict().values()}
    return {at: torch.empty(0, dtype=torch.uint8).set_(s).numpy().tobytes() for at, s in storages.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_every_task_answers_as_its_own_model_whatever_failed_before(
    activations, base, dtype, estates, few_tokens, tmp_path
):
    life = Life(estates[base], dtype, few_tokens, tmp_path)
    first = stored_bytes(life.resident)
    life.check()
    turns = ceil(activations / len(BASES) / len(DTYPES))
    for _ in range(turns):
        life.take_a_turn()
    assert life.checked > turns
    assert min(life.failed_exchanges, life.failed_attachments, life.refused_files) >= turns // 400
    assert life.resident.verify() == []
    assert life.resident.poisoned is None
    assert stored_bytes(life.resident) == first


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_no_two_tasks_answer_alike_so_that_a_mistaken_one_shows(base, dtype, estates):
    estate = estates[base]
    answers = [estate.answers[dtype], *(task.answers[dtype] for task in estate.tasks)]
    assert len({(a.shape, a.float().numpy().tobytes()) for a in answers}) == DELTAS_OF_A_BASE + 1


def test_tied_weights_and_whole_tensors_are_among_the_deltas(estates):
    files = [task.file.manifest for estate in estates.values() for task in estate.tasks]
    assert len(files) == 50
    assert {"GPT2LMHeadModel", "BertForMaskedLM"} <= {m.architecture for m in files}
    assert {"wte.weight", "embeddings.word_embeddings.weight", "pooler.dense.weight"} <= {
        name for m in files for name in m.dense
    }
    assert {m.codec for m in files} == set(CODECS)
