from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)

from ken_core.bits import same_bits
from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.delta import Delta, apply, merge
from ken_core.errors import ExchangeError, PoisonedError
from ken_core.extraction import extract
from ken_core.heads import graft
from ken_core.kernels import Exchange, Packed, Switch, exchange_for, switch_for
from ken_core.resident import Attached, ResidentModel
from ken_core.selection import Budget, Selection

EVERYTHING = Selection(budget=Budget(fraction=1.0))


class FaultyExchanges:
    """Gives real kernels; if `fail_next` is set, the next exchange raises before, amid or after its work."""

    def __init__(self) -> None:
        self.fail_next: str | None = None
        self.error: BaseException = RuntimeError("the device is on fire")

    def __call__(self, device: torch.device, dtype: torch.dtype) -> Exchange:
        real = exchange_for(device, dtype)

        def exchange(weights: torch.Tensor, packed: Packed) -> None:
            stage, self.fail_next = self.fail_next, None
            if stage == "middle":
                real(weights, Packed(packed.words, packed.values, packed.chunks[: len(packed.chunks) // 2]))
            elif stage != "before":
                real(weights, packed)
            if stage is not None:
                raise self.error

        return exchange

    def switch(self, device: torch.device, dtype: torch.dtype) -> Switch:
        real = switch_for(device, dtype)

        def switch(weights: torch.Tensor, leaving: Packed, entering: Packed) -> None:
            stage, self.fail_next = self.fail_next, None
            if stage == "middle":
                real(weights, leaving, Packed(entering.words, entering.values, entering.chunks[:1]))
            elif stage != "before":
                real(weights, leaving, entering)
            if stage is not None:
                raise self.error

        return switch


@pytest.fixture(scope="module")
def gpt2_base(save_random) -> Path:
    config = GPT2Config(
        vocab_size=70, n_embd=16, n_layer=2, n_head=2, n_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=1
    )
    return save_random(GPT2Model, config)


@pytest.fixture(scope="module")
def deltas(gpt2_base, save_noisy) -> dict[str, Delta]:
    """Deltas: sparse, full, with tied weights, with a dense embedding of more and of fewer rows, and an empty one."""
    base = open_base(str(gpt2_base))
    tied = open_tuned(str(save_noisy(GPT2LMHeadModel, gpt2_base, seed=1)))
    labels = open_tuned(str(save_noisy(GPT2ForSequenceClassification, gpt2_base, seed=2, num_labels=3)))
    more = open_tuned(str(save_noisy(GPT2LMHeadModel, gpt2_base, seed=3, resize=75)))
    fewer = open_tuned(str(save_noisy(GPT2ForSequenceClassification, gpt2_base, seed=4, resize=64)))
    return {
        "tied": extract(base, tied),
        "labels": extract(base, labels, EVERYTHING),
        "more rows": extract(base, more, Selection("ken-shift", Budget("row", 0.3))),
        "fewer rows": extract(base, fewer),
        "nothing": extract(base, tied, Selection(budget=Budget(fraction=0.0))),
    }


@pytest.fixture
def resident(gpt2_base) -> ResidentModel:
    return ResidentModel(open_base(str(gpt2_base)))


def serving(tensors: dict[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    return {n: t.to(dtype) if dtype else t for n, t in tensors.items()}


def weights_are(resident: ResidentModel, expected: dict[str, torch.Tensor]) -> bool:
    weights = dict(resident.backbone.named_parameters())
    return all(same_bits(weights[n].data, t) for n, t in expected.items())


def original(resident: ResidentModel, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    return serving(open_base(str(resident.checkpoint.folder)).backbone_tensors, dtype)


# the whole life of a resident model


class ResidentLife(RuleBasedStateMachine):
    """Deltas come and go and exchanges fail; at every moment the weights are exactly those of the active delta."""

    folder: ClassVar[Path]
    deltas: ClassVar[dict[str, Delta]]
    merged: ClassVar[dict[str | None, dict[str, torch.Tensor]]]
    dtype: ClassVar[torch.dtype | None]

    def __init__(self) -> None:
        super().__init__()
        self.faults = FaultyExchanges()
        self.resident = ResidentModel(
            open_base(str(self.folder)),
            dtype=self.dtype,
            exchange_factory=self.faults,
            switch_factory=self.faults.switch,
        )
        self.attached: list[tuple[str, Attached]] = []
        self.active: str | None = None
        self.heads = {
            name: graft(self.resident.backbone, delta.architecture, delta.config, delta.head)
            for name, delta in self.deltas.items()
        }

    @initialize(data=st.data())
    def attach_one(self, data: st.DataObject) -> None:
        self.attach(data.draw(st.sampled_from(sorted(self.deltas))), False)

    @rule(name=st.sampled_from(["tied", "labels", "more rows", "fewer rows", "nothing"]), materialised=st.booleans())
    def attach(self, name: str, materialised: bool) -> None:
        self.attached.append((name, self.resident.attach(self.deltas[name], materialised=materialised)))

    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        name, attached = data.draw(st.sampled_from([a for a in self.attached if not a[1].spoiled] or self.attached))
        if attached.spoiled:
            with pytest.raises(ExchangeError, match="spoiled"):
                self.resident.activate(attached)
            return
        self.resident.activate(attached)
        self.active = name

    @rule()
    def revert(self) -> None:
        self.resident.revert()
        self.active = None

    @rule()
    def verify(self) -> None:
        assert self.resident.verify() == []
        self.active = None

    @precondition(lambda self: self.attached)
    @rule(data=st.data(), stage=st.sampled_from(["before", "middle", "after"]))
    def fail_to_activate(self, data: st.DataObject, stage: str) -> None:
        name, attached = data.draw(st.sampled_from(self.attached))
        leaving = self.resident.active
        exchanging = [a for a in (leaving, attached) if a is not None and a.packed]
        if attached is leaving or attached.spoiled or not exchanging:
            return
        self.faults.fail_next = stage
        with pytest.raises(ExchangeError, match="on fire"):
            self.resident.activate(attached)
        assert self.resident.active is None
        assert exchanging[0].spoiled
        self.active = None
        self.attached.append((name, self.resident.attach(self.deltas[name])))

    @invariant()
    def the_weights_are_those_of_the_active_delta(self) -> None:
        assert weights_are(self.resident, self.merged[self.active])

    @invariant()
    def the_active_delta_is_known(self) -> None:
        named = [name for name, attached in self.attached if attached is self.resident.active]
        assert named == ([self.active] if self.active else [])
        assert self.resident.poisoned is None

    @invariant()
    def tied_weights_stay_tied(self) -> None:
        for name in ("tied", "more rows"):
            assert self.heads[name].lm_head.weight is self.resident.backbone.wte.weight


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["stored dtype", "bfloat16"])
def test_the_weights_are_always_those_of_the_active_delta(gpt2_base, deltas, dtype):
    base = open_base(str(gpt2_base))
    life = type("Life", (ResidentLife,), {})
    life.folder, life.deltas, life.dtype = gpt2_base, deltas, dtype
    life.merged = {None: serving(base.backbone_tensors, dtype)}
    life.merged |= {name: serving(merge(base, delta), dtype) for name, delta in deltas.items()}
    life.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
    life.TestCase().runTest()


# memory


def test_the_resident_weights_are_the_checkpoints(resident):
    assert weights_are(resident, original(resident))
    assert resident.active is None
    assert resident.poisoned is None
    assert resident.verify() == []


@pytest.mark.parametrize(("dtype", "itemsize"), [(None, 4), (torch.bfloat16, 2), (torch.float64, 8)])
def test_the_resident_weights_take_what_the_padded_tensors_take(gpt2_base, dtype, itemsize):
    base = open_base(str(gpt2_base))
    resident = ResidentModel(base, dtype=dtype)
    padded = sum(-(-t.numel() // 64) * 64 for t in base.backbone_tensors.values())
    assert resident.nbytes == padded * itemsize


def test_all_parameters_lie_aligned_in_one_block_and_no_other_copy_is_kept(resident):
    (arena,) = resident._arenas.values()
    low, high = arena.data_ptr(), arena.data_ptr() + arena.nbytes
    for name, parameter in resident.backbone.named_parameters():
        assert low <= parameter.data_ptr() < high, name
        assert (parameter.data_ptr() - low) % (64 * 4) == 0, name
    for tensor in resident.checkpoint.backbone_tensors.values():
        assert not low <= tensor.data_ptr() < high


def test_the_checkpoints_map_is_never_written_to(resident, deltas):
    before = original(resident)
    for materialised in (False, True):
        resident.activate(resident.attach(deltas["labels"], materialised=materialised))
        assert all(same_bits(resident.checkpoint.backbone_tensors[n], t) for n, t in before.items())


def test_attaching_changes_nothing_yet(resident, deltas):
    for delta in deltas.values():
        for materialised in (False, True):
            resident.attach(delta, materialised=materialised)
    assert weights_are(resident, original(resident))


def test_an_attached_delta_says_what_it_takes(resident, deltas):
    delta = deltas["labels"]
    packed, full = resident.attach(delta), resident.attach(delta, materialised=True)
    head = sum(t.nbytes for t in delta.head.values())
    assert full.nbytes == head + sum(4 * s.mask.size for s in delta.sparse.values())
    words = sum(-(-s.mask.size // 64) * 8 for s in delta.sparse.values())
    table = sum(32 * -(-s.mask.size // 65_536) for s in delta.sparse.values())
    assert packed.nbytes == head + 4 * delta.stored + words + table
    assert not packed.materialised
    assert full.materialised


def test_parameters_the_files_lack_are_zero_and_return_to_zero(tiny_base, save_noisy):
    from transformers import BertForMaskedLM, BertForSequenceClassification

    folder = save_noisy(BertForMaskedLM, tiny_base)  # without a pooler
    resident = ResidentModel(open_base(str(folder)))
    delta = extract(
        open_base(str(folder)), open_tuned(str(save_noisy(BertForSequenceClassification, folder, num_labels=3)))
    )
    pooler = resident.backbone.pooler.dense
    assert not pooler.weight.any()
    resident.activate(resident.attach(delta))
    assert same_bits(pooler.weight.data, delta.dense["pooler.dense.weight"])
    resident.revert()
    assert not pooler.weight.any()
    assert resident.verify() == []


# switching


def test_activating_changes_the_answers_and_reverting_restores_them(resident, deltas, batch):
    model = graft(resident.backbone, "GPT2LMHeadModel", deltas["tied"].config, {})
    inputs = {k: v % 70 for k, v in batch.items()}

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    before = logits()
    for materialised in (False, True):
        resident.activate(resident.attach(deltas["tied"], materialised=materialised))
        assert not torch.equal(logits(), before)
        resident.revert()
        assert same_bits(logits(), before)


@pytest.mark.parametrize("mkldnn", [True, False], ids=["oneDNN", "no oneDNN"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_backend_keeps_weights_of_its_own(gpt2_base, deltas, tmp_path, batch, dtype, attention, mkldnn):
    """However often a backend has seen the base's weights, its next answer is the injected delta's."""
    resident = ResidentModel(open_base(str(gpt2_base)), dtype=dtype)
    resident.backbone.set_attn_implementation(attention)
    apply(open_base(str(gpt2_base)), deltas["labels"], tmp_path / "applied")
    dedicated = open_base(str(tmp_path / "applied")).backbone.to(dtype)
    dedicated.set_attn_implementation(attention)
    attached = [resident.attach(deltas["labels"], materialised=m) for m in (False, True)]
    inputs = {k: v % 70 for k, v in batch.items()}
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=mkldnn):
        base = resident.backbone(**inputs).last_hidden_state
        expected = dedicated(**inputs).last_hidden_state
        assert not torch.equal(base, expected)
        for each in attached * 2:
            for _ in range(3):
                assert same_bits(resident.backbone(**inputs).last_hidden_state, base)
            resident.activate(each)
            assert same_bits(resident.backbone(**inputs).last_hidden_state, expected)
            resident.revert()


def test_activating_what_is_active_changes_nothing(resident, deltas):
    attached = resident.attach(deltas["labels"])
    resident.activate(attached)
    weights = {n: p.data.clone() for n, p in resident.backbone.named_parameters()}
    resident.activate(attached)
    assert weights_are(resident, weights)
    assert resident.active is attached


def test_materialised_deltas_leave_the_base_in_its_place(resident, deltas):
    resident.activate(resident.attach(deltas["labels"], materialised=True))
    assert all(same_bits(home, original(resident)[n]) for n, home in resident._home.items())


def test_verify_names_a_tensor_that_is_not_the_bases(resident):
    resident.backbone.h[1].mlp.c_fc.weight.data[3, 4] += 1
    assert resident.verify() == ["h.1.mlp.c_fc.weight"]


def test_verify_sees_a_sign_of_zero(resident):
    bias = resident.backbone.h[0].ln_1.bias.data
    assert bias[2] == 0
    bias[2] = -0.0
    assert resident.verify() == ["h.0.ln_1.bias"]


def test_verify_sees_a_parameter_that_no_longer_is_the_resident_one(resident):
    """If a weight was replaced by any other tensor, the model would not answer from the weights that were checked."""
    name = "h.0.ln_1.weight"
    resident.backbone.h[0].ln_1.weight = torch.nn.Parameter(resident.backbone.h[0].ln_1.weight.data + 1)
    assert resident.verify() == [name]


# serving in another dtype


@pytest.mark.parametrize("materialised", [False, True])
def test_bfloat16_weights_are_those_of_the_applied_folder_cast(gpt2_base, deltas, tmp_path, materialised):
    apply(open_base(str(gpt2_base)), deltas["more rows"], tmp_path / "out")
    resident = ResidentModel(open_base(str(gpt2_base)), dtype=torch.bfloat16)
    resident.activate(resident.attach(deltas["more rows"], materialised=materialised))
    assert weights_are(resident, serving(open_base(str(tmp_path / "out")).backbone_tensors, torch.bfloat16))


@pytest.mark.parametrize(
    ("model_class", "classifier_class", "config"),
    [
        (
            GPT2Model,
            GPT2ForSequenceClassification,
            GPT2Config(vocab_size=96, n_embd=16, n_layer=2, n_head=2, n_positions=20, pad_token_id=0),
        ),
        (
            LlamaModel,
            LlamaForSequenceClassification,
            LlamaConfig(
                vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                max_position_embeddings=40, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            ),
        ),
    ],
    ids=["gpt2", "llama"],
)  # fmt: skip
def test_bfloat16_answers_are_those_of_the_applied_folder_opened_in_bfloat16(
    save_random, save_noisy, tmp_path, batch, model_class, classifier_class, config
):
    """Rotary tables stay float32 in a model transformers opens in bfloat16."""
    folder = save_random(model_class, config)
    delta = extract(open_base(str(folder)), open_tuned(str(save_noisy(classifier_class, folder, num_labels=3))))
    apply(open_base(str(folder)), delta, tmp_path / "out")
    applied = classifier_class.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).eval()
    resident = ResidentModel(open_base(str(folder)), dtype=torch.bfloat16)
    attached = resident.attach(delta)
    model = graft(resident.backbone, delta.architecture, delta.config, attached.head)
    resident.activate(attached)
    with torch.no_grad():
        assert same_bits(model(**batch).logits, applied(**batch).logits)


def test_a_base_of_two_stored_dtypes_serves_in_one(gpt2_base, save_noisy):
    """transformers loads architectures that keep some modules in float32 in this way."""

    def mixed(opened: Checkpoint) -> Checkpoint:
        for name, parameter in opened.backbone.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if "ln_" in name else torch.bfloat16)
        return opened

    base = mixed(open_base(str(gpt2_base)))
    tuned = mixed(open_tuned(str(save_noisy(GPT2ForSequenceClassification, gpt2_base, num_labels=3))))
    delta = extract(base, tuned, EVERYTHING, cast=True)
    assert {s.dtype for s in delta.sparse.values()} == {torch.float32, torch.bfloat16}
    resident = ResidentModel(mixed(open_base(str(gpt2_base))), dtype=torch.float32)
    resident.activate(resident.attach(delta))
    assert weights_are(resident, serving(merge(base, delta), torch.float32))


# failure


@pytest.fixture
def faults() -> FaultyExchanges:
    return FaultyExchanges()


@pytest.fixture
def fragile(gpt2_base, faults) -> ResidentModel:
    return ResidentModel(open_base(str(gpt2_base)), exchange_factory=faults, switch_factory=faults.switch)


@pytest.mark.parametrize("stage", ["before", "middle", "after"])
@pytest.mark.parametrize("name", ["labels", "more rows"])
class TestAFailedExchange:
    def test_on_the_way_in_leaves_the_base_bit_for_bit(self, fragile, faults, deltas, name, stage):
        attached = fragile.attach(deltas[name])
        faults.fail_next = stage
        with pytest.raises(ExchangeError, match="base was restored: the device is on fire"):
            fragile.activate(attached)
        assert fragile.active is None
        assert weights_are(fragile, original(fragile))
        assert fragile.verify() == []

    def test_on_the_way_out_leaves_the_base_bit_for_bit(self, fragile, faults, deltas, name, stage):
        fragile.activate(fragile.attach(deltas[name]))
        faults.fail_next = stage
        with pytest.raises(ExchangeError, match="base was restored"):
            fragile.revert()
        assert fragile.active is None
        assert weights_are(fragile, original(fragile))
        assert fragile.verify() == []

    def test_between_two_deltas_spoils_both_and_attaching_again_works(self, fragile, faults, deltas, name, stage):
        leaving, coming = fragile.attach(deltas[name]), fragile.attach(deltas["tied"])
        fragile.activate(leaving)
        faults.fail_next = stage
        with pytest.raises(ExchangeError):
            fragile.activate(coming)
        assert leaving.spoiled
        assert coming.spoiled
        fragile.activate(fragile.attach(deltas["tied"]))
        assert weights_are(fragile, merge(open_base(str(fragile.checkpoint.folder)), deltas["tied"]))

    def test_spoils_the_attached_delta_and_attaching_again_works(self, fragile, faults, deltas, name, stage):
        attached = fragile.attach(deltas[name])
        faults.fail_next = stage
        with pytest.raises(ExchangeError):
            fragile.activate(attached)
        with pytest.raises(ExchangeError, match="attach the delta again"):
            fragile.activate(attached)
        fragile.activate(fragile.attach(deltas[name]))
        assert weights_are(fragile, merge(open_base(str(fragile.checkpoint.folder)), deltas[name]))

    def test_by_an_interrupt_restores_the_base_and_lets_the_interrupt_through(
        self, fragile, faults, deltas, name, stage
    ):
        attached = fragile.attach(deltas[name])
        faults.fail_next, faults.error = stage, KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            fragile.activate(attached)
        assert weights_are(fragile, original(fragile))
        assert fragile.active is None
        assert fragile.verify() == []


def everything_that_uses_the_weights(resident: ResidentModel, attached: Attached) -> list[Callable[[], object]]:
    return [lambda: resident.activate(attached), lambda: resident.activate(None), resident.revert, resident.verify]


def break_the_map(resident: ResidentModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(name: str) -> torch.Tensor:
        raise OSError(f"cannot read {name} any more")

    monkeypatch.setattr(resident, "checkpoint_tensor", unreadable)


@pytest.mark.parametrize("stage", ["before", "middle", "after"])
def test_a_base_that_cannot_be_restored_poisons_the_model_for_good(fragile, faults, deltas, monkeypatch, stage):
    attached, other = fragile.attach(deltas["labels"]), fragile.attach(deltas["tied"], materialised=True)
    faults.fail_next = stage
    with monkeypatch.context() as broken:
        break_the_map(fragile, broken)
        with pytest.raises(PoisonedError, match="restart this replica"):
            fragile.activate(attached)
    assert "cannot read" in fragile.poisoned
    for use in everything_that_uses_the_weights(fragile, other):
        with pytest.raises(PoisonedError):
            use()


def test_a_restored_base_that_is_not_the_bases_bits_poisons_the_model(fragile, faults, deltas, monkeypatch):
    attached = fragile.attach(deltas["labels"])
    real = fragile.checkpoint_tensor
    monkeypatch.setattr(fragile, "checkpoint_tensor", lambda name: real(name) + (name == "ln_f.bias"))
    faults.fail_next = "middle"
    with pytest.raises(PoisonedError, match=r"differ from the base.*ln_f\.bias"):
        fragile.activate(attached)
    for use in everything_that_uses_the_weights(fragile, attached):
        with pytest.raises(PoisonedError):
            use()


def test_an_interrupt_after_which_the_base_cannot_be_restored_poisons_too(fragile, faults, deltas, monkeypatch):
    attached = fragile.attach(deltas["labels"])
    break_the_map(fragile, monkeypatch)
    faults.fail_next, faults.error = "middle", KeyboardInterrupt()
    with pytest.raises(PoisonedError):
        fragile.activate(attached)
    assert fragile.poisoned is not None


def test_a_failed_exchange_in_bfloat16_restores_the_base_too(gpt2_base, faults, deltas):
    resident = ResidentModel(
        open_base(str(gpt2_base)), dtype=torch.bfloat16, exchange_factory=faults, switch_factory=faults.switch
    )
    attached = resident.attach(deltas["labels"])
    faults.fail_next = "middle"
    with pytest.raises(ExchangeError):
        resident.activate(attached)
    assert weights_are(resident, original(resident, torch.bfloat16))
    assert resident.verify() == []
