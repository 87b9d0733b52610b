"""Rows of many tasks in one forward pass: each as its own task's weights give it, and nobody's but its own."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, BY_NAME, Architecture
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from ken_core import Delta, ExchangeError, ResidentModel, open_base, open_tuned
from ken_core.entries import LowRank
from ken_core.extraction import extract
from ken_core.mixing import trial
from ken_core.mixing.model import MixedModel
from ken_core.resident import Attached
from ken_core.selection import Budget, Selection

Tasks = Sequence[tuple[int | None, int]]
"""Groups of a batch: a task's number, None for the base, and how many rows it has."""
ROWS, TOKENS = 6, 9
KEPT = Selection("magnitude", Budget("global", 0.3))
DOES_NOT_MIX = {
    "deberta": "DisentangledSelfAttention",
    "deberta-v2": "is not called with the batch's rows alone",
    "mpnet": "encoder.relative_attention_bias.weight",
    "mixtral": "Mixtral",
    "opt": "OPTLearnedPositionalEmbedding",
}
"""Whose whole fine-tunes change something that is not computed row by row, and what the reason names."""


class Estate:
    """A base and a few tasks on it, to be run mixed or one after the other."""

    def __init__(self, base: Path, tuned: Sequence[Path], only: Callable[[Delta], Delta] = lambda delta: delta) -> None:
        self.resident = ResidentModel(open_base(str(base)))
        self.deltas = [only(extract(open_base(str(base)), open_tuned(str(folder)), KEPT)) for folder in tuned]
        self.before()
        self.mixed = MixedModel(self.resident)
        self.attached: list[Attached] = []

    def before(self) -> None:
        """Whatever has to be done to the resident model before it is tried."""

    def attach(self) -> None:
        self.attached = [self.mixed.attach(delta) for delta in self.deltas]

    def one_by_one(self, batch: Mapping[str, torch.Tensor], task: int | None) -> torch.Tensor:
        self.resident.activate(None if task is None else self.attached[task])
        with torch.inference_mode():
            states: torch.Tensor = self.resident.backbone(**batch).last_hidden_state
        self.resident.revert()
        return states

    def run(self, tasks: Tasks, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        nothing = Attached(frozenset(), {}, {}, {}, False, changes={})
        groups = [(nothing if task is None else self.attached[task], rows) for task, rows in tasks]
        with torch.inference_mode():
            states: torch.Tensor = self.mixed.run(groups, batch).last_hidden_state
        return states


def batch_of(rows: int = ROWS, tokens: int = TOKENS, seed: int = 4) -> dict[str, torch.Tensor]:
    """Token sequences of different lengths, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 90, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, int(torch.randint(2, tokens + 1, (1,), generator=generator)) :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def expected(estate: Estate, tasks: Tasks, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    rows, at = [], 0
    for task, count in tasks:
        rows.append(estate.one_by_one(batch, task)[at : at + count])
        at += count
    return torch.cat(rows)


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> float:
    """Over the tokens that are no padding."""
    real = batch["attention_mask"].bool()
    return float((ours - theirs)[real].abs().max())


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda a: a.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    found: Architecture = request.param
    return found


@pytest.fixture(scope="module")
def estate(architecture: Architecture, save_random, save_noisy) -> Estate:  # type: ignore[no-untyped-def]
    base = save_random(AutoModel.from_config, architecture.config())
    return Estate(base, [save_noisy(AutoModel, base, seed=seed) for seed in (6, 7)])


def test_whole_fine_tunes_mix_unless_something_of_them_is_not_computed_by_row(architecture, estate):
    why = estate.mixed.why_not(estate.deltas[0])
    assert DOES_NOT_MIX.get(architecture.name, "") in why
    assert bool(why) == (architecture.name in DOES_NOT_MIX)


def test_a_mixed_batch_answers_as_the_exchanged_weights_do(estate):
    estate.deltas = [without(delta, estate.mixed.refused) for delta in estate.deltas]
    estate.attach()
    batch, tasks = batch_of(), [(0, 2), (1, 1), (None, 2), (0, 1)]
    ours = estate.run(tasks, batch)
    theirs = expected(estate, tasks, batch)
    scale = float(theirs.abs().max())
    assert largest_difference(ours, theirs, batch) < 1e-5 * scale
    neighbours = expected(estate, [(1, 2), (0, 1), (1, 2), (None, 1)], batch)
    for row in range(ROWS):
        assert (ours[row, 0] - neighbours[row, 0]).abs().max() > 1e-3 * scale


def without(delta: Delta, names: Mapping[str, str]) -> Delta:
    """A delta that leaves some tensors as the base has them."""
    return dataclasses.replace(delta, sparse={n: e for n, e in delta.sparse.items() if n not in names})


# what one architecture is enough for


def small(save_random, save_noisy, name: str, **options) -> Estate:  # type: ignore[no-untyped-def]
    base = save_random(AutoModel.from_config, BY_NAME[name].config(), **options)
    return Estate(base, [save_noisy(AutoModel, base, seed=seed) for seed in (6, 7)])


def with_factors(delta: Delta, rank: int = 2) -> Delta:
    """A delta whose matrices are shifted by factors in place of kept elements."""
    generator = torch.Generator().manual_seed(rank)

    def factors(shape: tuple[int, ...]) -> LowRank:
        a, b = (0.2 * torch.randn(size, generator=generator) for size in ((rank, shape[1]), (shape[0], rank)))
        return LowRank(a, b, 0.5)

    matrices = {n: factors(e.shape) for n, e in delta.sparse.items() if len(e.shape) == 2}
    return dataclasses.replace(
        delta, lowrank=matrices, sparse={n: e for n, e in delta.sparse.items() if n not in matrices}
    )


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_low_rank_shifts_mix_as_factors_and_answer_as_whole_matrices(name, save_random, save_noisy):
    estate = small(save_random, save_noisy, name)
    estate.deltas = [with_factors(delta, rank) for delta, rank in zip(estate.deltas, (2, 3), strict=True)]
    estate.attach()
    batch, tasks = batch_of(), [(0, 2), (1, 1), (None, 1), (0, 1), (1, 1)]
    ours = estate.run(tasks, batch)
    factors = sum(attached.nbytes for attached in estate.attached)
    estate.attached = [estate.resident.attach(delta) for delta in estate.deltas]
    theirs = expected(estate, tasks, batch)
    assert largest_difference(ours, theirs, batch) < 1e-5 * float(theirs.abs().max())
    assert factors < sum(attached.nbytes for attached in estate.attached) / 2


def test_a_delta_with_factors_alone_cannot_be_put_into_the_weights(save_random, save_noisy):
    estate = small(save_random, save_noisy, "bert")
    estate.deltas = [with_factors(delta) for delta in estate.deltas]
    estate.attach()
    with pytest.raises(ExchangeError, match="mixed batches only"):
        estate.resident.activate(estate.attached[0])
    assert estate.resident.active is None


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_mixes_within_its_rounding(dtype, allowed, save_random, save_noisy):
    estate = small(save_random, save_noisy, "bert", dtype=dtype)
    estate.attach()
    assert not estate.mixed.refused
    batch, tasks = batch_of(), [(0, 3), (1, 3)]
    ours, theirs = estate.run(tasks, batch).float(), expected(estate, tasks, batch).float()
    assert largest_difference(ours, theirs, batch) < allowed * float(theirs.abs().max())


def test_norms_run_for_all_tasks_at_once(save_random, save_noisy):
    estate = small(save_random, save_noisy, "llama")
    norms = {n for n, m in estate.resident.backbone.named_modules() if "norm" in type(m).__name__.lower()}
    assert norms
    assert estate.mixed._mixer.stacking == norms


class FusedNorm(torch.nn.LayerNorm):
    """One that takes no more than one vector of weights."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(states, self.weight.shape, self.weight, self.bias, self.eps)


def test_a_norm_that_takes_no_stack_of_vectors_runs_once_a_task(save_random, save_noisy):
    base = save_random(AutoModel.from_config, BY_NAME["bert"].config())
    tuned = [save_noisy(AutoModel, base, seed=seed) for seed in (6, 7)]

    class Fused(Estate):
        def before(self) -> None:
            self.resident.backbone.get_submodule("encoder.layer.0.output.LayerNorm").__class__ = FusedNorm

    estate = Fused(base, tuned)
    estate.attach()
    assert not estate.mixed.refused
    assert "encoder.layer.0.output.LayerNorm" not in estate.mixed._mixer.stacking
    assert "embeddings.LayerNorm" in estate.mixed._mixer.stacking
    batch, tasks = batch_of(), [(0, 2), (1, 1), (None, 2), (0, 1)]
    ours, theirs = estate.run(tasks, batch), expected(estate, tasks, batch)
    assert largest_difference(ours, theirs, batch) < 1e-5 * float(theirs.abs().max())


def test_nothing_writes_to_the_base_while_batches_mix(save_random, save_noisy):
    estate = small(save_random, save_noisy, "bert")
    estate.attach()
    before = {dtype: arena.clone() for dtype, arena in estate.resident.arenas.items()}
    values = [attached.packed[torch.float32].values.clone() for attached in estate.attached]
    for seed in range(5):
        estate.run([(0, 2), (None, 1), (1, 3)], batch_of(seed=seed))
    assert all(torch.equal(arena, before[dtype]) for dtype, arena in estate.resident.arenas.items())
    assert all(torch.equal(a.packed[torch.float32].values, v) for a, v in zip(estate.attached, values, strict=True))
    assert not estate.resident.verify()


def test_batches_mix_on_bases_that_may_only_be_read(save_random, save_noisy):
    folders: list[Path] = []
    for name in ("bert", "gpt2", "llama"):
        base = save_random(AutoModel.from_config, BY_NAME[name].config())
        folders += [base, save_noisy(AutoModel, base)]
    script = Path(__file__).with_name("write_protected.py")
    ran = subprocess.run([sys.executable, script, *folders], capture_output=True, text=True)
    assert ran.stdout == "ran\n" * 3, ran.stderr
    assert ran.returncode == -signal.SIGSEGV  # of the exchange that follows, which writes


def test_a_mixed_batch_is_refused_while_a_delta_is_in_the_weights(save_random, save_noisy):
    estate = small(save_random, save_noisy, "bert")
    estate.attach()
    estate.resident.activate(estate.attached[0])
    with pytest.raises(ExchangeError, match="revert first"):
        estate.run([(0, 3), (1, 3)], batch_of())


def test_a_spoiled_delta_does_not_mix(save_random, save_noisy):
    estate = small(save_random, save_noisy, "bert")
    estate.attach()
    estate.attached[1].spoiled = True
    with pytest.raises(ExchangeError, match="attach it again"):
        estate.run([(0, 3), (1, 3)], batch_of())


def test_two_threads_mix_other_tasks_at_once(save_random, save_noisy):
    estate = small(save_random, save_noisy, "bert")
    estate.attach()
    batches = [batch_of(seed=seed) for seed in range(8)]
    plans: list[Tasks] = [[(seed % 2, 2), (None, 1), (1 - seed % 2, 3)] for seed in range(8)]
    alone = [estate.run(plan, batch) for plan, batch in zip(plans, batches, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda n: estate.run(plans[n % 8], batches[n % 8]), range(64)))
    for n, states in enumerate(together):
        assert torch.equal(states, alone[n % 8])


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_mixture_answers_as_its_tasks_do_alone(data, bert_estate):
    tasks = data.draw(st.lists(st.tuples(st.sampled_from([None, 0, 1]), st.integers(1, 4)), min_size=1, max_size=6))
    rows, tokens = sum(count for _, count in tasks), data.draw(st.integers(2, 17))
    batch = batch_of(rows, tokens, data.draw(st.integers(0, 1 << 16)))
    ours, theirs = bert_estate.run(tasks, batch), expected(bert_estate, tasks, batch)
    assert largest_difference(ours, theirs, batch) < 1e-5 * float(theirs.abs().max())


@pytest.fixture(scope="module")
def bert_estate(save_random, save_noisy):
    estate = small(save_random, save_noisy, "bert")
    estate.attach()
    return estate


def test_of_a_backbone_that_cannot_be_tried_nothing_mixes(save_random, save_noisy, monkeypatch):
    base = save_random(AutoModel.from_config, BY_NAME["bert"].config())
    resident = ResidentModel(open_base(str(base)))
    monkeypatch.setattr(resident.backbone, "forward", lambda **inputs: inputs["pixel_values"])
    delta = extract(open_base(str(base)), open_tuned(str(save_noisy(AutoModel, base))), KEPT)
    assert "does not run on a small batch of texts" in MixedModel(resident).why_not(delta)


def test_parameters_are_tried_together_by_kind_as_far_as_memory_goes(monkeypatch):
    monkeypatch.setattr(trial, "_MOST_AT_ONCE", 10)
    weights = {f"layer.{n}.query": torch.zeros(4) for n in range(5)} | {
        "words": torch.zeros(40),
        "layer.0.key": torch.zeros(1),
    }
    assert trial._alike(weights) == [
        ["layer.0.query", "layer.1.query"],
        ["layer.2.query", "layer.3.query"],
        ["layer.4.query"],
        ["words"],
        ["layer.0.key"],
    ]
