"""Decode steps of many tasks: each text as its own task's weights continue it, and nobody's but its own."""

from __future__ import annotations

import dataclasses
import random
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mixing import with_factors
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ken_core import Delta, ExchangeError, ResidentModel, open_base, open_tuned
from ken_core.decoding.choice import decoder_of
from ken_core.decoding.decoder import Chunk
from ken_core.decoding.packed import PackedDecoder
from ken_core.extraction import extract
from ken_core.heads import graft_split
from ken_core.kernels import few_tokens
from ken_core.mixing.model import MixedModel
from ken_core.mixing.steps import MixedSteps, TaskChunks
from ken_core.selection import Budget, Selection
from tests.decoder_architectures import PACKED, write_decoder

KEPT = Selection("magnitude", Budget("global", 0.3))
WIDE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
DOES_NOT_MIX = {
    "gemma": "its head's lm_head.weight is the backbone's embed_tokens.weight",  # which its embedding scales
    "gemma3_text": "its head's lm_head.weight is the backbone's embed_tokens.weight",
    "mixtral": "Mixtral",
    "opt": "OPTLearnedPositionalEmbedding",
    "qwen2_moe": "mlp",
}
"""Of the architectures that are packed, and what the reason names."""
Lengths = Mapping[int, Sequence[int]]
"""Of each task's texts, in tokens."""


class Estate:
    """A base that decodes, and two fine-tunes of it.

    Args:
        change: what is done to each fine-tune before it is saved.
        only: what is done to each delta.
    """

    def __init__(
        self,
        folder: Path,
        model_type: str,
        sizes: Mapping[str, Any],
        dtype: torch.dtype = torch.float32,
        change: Callable[[Any], None] = lambda model: None,
        only: Callable[[Delta], Delta] = lambda delta: delta,
    ) -> None:
        base = write_decoder(folder / "base", model_type, sizes)
        self.resident = ResidentModel(open_base(str(base)), dtype=dtype)
        tuned = [_fine_tune(base, folder / f"tuned-{seed}", seed, change) for seed in (6, 7)]
        self.deltas = [only(extract(self.resident.checkpoint, open_tuned(str(one)), KEPT)) for one in tuned]
        decoder = decoder_of(self.resident.backbone)
        assert isinstance(decoder, PackedDecoder)
        self.decoder = decoder
        self.mixed = MixedModel(self.resident)
        self.steps = MixedSteps(self.resident, self.mixed, decoder)

    @cached_property
    def attached(self) -> list[Any]:
        return [self.mixed.attach(delta) for delta in self.deltas]

    @cached_property
    def models(self) -> list[Any]:
        return [
            graft_split(self.resident.backbone, d.architecture, d.config, a.head)
            for d, a in zip(self.deltas, self.attached, strict=True)
        ]

    def why_not(self) -> str:
        return self.steps.why_not(self.deltas[0], self.models[0])

    def alone(self, task: int, ids: Sequence[int]) -> torch.Tensor:
        """A task's logits after each token of a text, by exchange: (tokens, vocabulary)."""
        whole = self.resident.attach(self.deltas[task])
        self.resident.activate(whole)
        try:
            with torch.inference_mode():
                output = self.resident.backbone(input_ids=torch.tensor([list(ids)]))
                logits: torch.Tensor = self.models[task](output, {"input_ids": torch.tensor([list(ids)])}).logits[0]
                return logits.clone()
        finally:
            self.resident.revert()

    def largest_difference(self, lengths: Lengths, most: int, seed: int = 1) -> float:
        """Of logits in mixed steps over random chunks from those by exchange, as a share of the largest."""
        draw = random.Random(seed)
        texts = {
            task: [([draw.randrange(3, 290) for _ in range(n)], self.decoder.start()) for n in some]
            for task, some in lengths.items()
        }
        expected = {task: [self.alone(task, ids) for ids, _ in some] for task, some in texts.items()}
        worst = 0.0
        while True:
            taken = {
                task: [
                    (number, Chunk(ids[past.length : past.length + count], past))
                    for number, (ids, past) in enumerate(some)
                    if (count := min(draw.choice((0, 1, 1, most)), len(ids) - past.length))
                ]
                for task, some in texts.items()
            }
            parts = [(task, some) for task, some in taken.items() if some]
            if not parts and all(past.length == len(ids) for some in texts.values() for ids, past in some):
                return worst
            if not parts:
                continue
            with torch.inference_mode():
                found = self.steps.step(
                    [
                        TaskChunks(self.attached[t], self.models[t], [c for _, c in some], range(len(some)))
                        for t, some in parts
                    ]
                )
            for (task, some), logits in zip(parts, found, strict=True):
                for row, (number, chunk) in enumerate(some):
                    right = expected[task][number][chunk.past.length - 1]
                    worst = max(worst, float((logits[row] - right).abs().max() / right.abs().max()))


def _fine_tune(base: Path, folder: Path, seed: int, change: Callable[[Any], None]) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    change(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


TEXTS: Lengths = {0: (9, 40), 1: (23, 5, 17)}


@pytest.mark.parametrize("model_type", PACKED)
def test_every_architecture_mixes_or_says_why_not(model_type: str, tmp_path: Path) -> None:
    estate = Estate(tmp_path, model_type, PACKED[model_type])
    why = estate.why_not()
    assert DOES_NOT_MIX.get(model_type, "") in why
    assert bool(why) == (model_type in DOES_NOT_MIX)
    if not why:
        assert estate.largest_difference(TEXTS, most=7) < 1e-4
        assert estate.resident.verify() == []


@pytest.mark.skipif(not few_tokens.is_usable(), reason="the processor has no AVX-512")
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "phi3", "olmo2", "starcoder2"])
def test_every_linear_layer_of_an_architecture_is_multiplied_by_the_kernel(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With biases, and with queries, keys and values in one layer."""
    estate = Estate(tmp_path, model_type, WIDE)
    multiplied = set()
    product = few_tokens.product
    monkeypatch.setattr(
        few_tokens,
        "product",
        lambda x, weight, tiles: (multiplied.add(weight.data_ptr()), product(x, weight, tiles))[1],
    )
    assert estate.why_not() == ""
    assert estate.largest_difference(TEXTS, most=3) < 1e-4
    layers = [m for m in estate.resident.backbone.modules() if type(m) is nn.Linear]
    assert len(layers) >= 8
    assert {layer.weight.data_ptr() for layer in layers} <= multiplied


@pytest.mark.skipif(not few_tokens.is_usable(), reason="the processor has no AVX-512")
def test_tasks_of_low_rank_factors_leave_one_token_and_many_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They keep no values in any matrix, so the kernel has nothing to save where MKL is faster."""
    monkeypatch.setattr("ken_core.decoding.few_rows.mkl_is_fast", lambda: False)
    estate = Estate(tmp_path, "llama", {**WIDE, "tie_word_embeddings": True}, only=with_factors)
    calls: list[int] = []
    product = few_tokens.product
    monkeypatch.setattr(few_tokens, "product", lambda x, *others: (calls.append(len(x)), product(x, *others))[1])
    seen = {}
    for tokens in (1, 4, 20):
        calls.clear()
        chunk = Chunk(list(range(5, 5 + tokens)), estate.decoder.start())
        with torch.inference_mode():
            estate.steps.step([TaskChunks(estate.attached[0], estate.models[0], [chunk], [0])])
        seen[tokens] = tokens in calls
    assert seen == {1: False, 4: True, 20: False}


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_few_tokens_and_many(few: bool, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to some tokens a task's own weights are multiplied with, beyond that the base's result is corrected."""
    if few and not few_tokens.is_usable():
        pytest.skip("this processor has no AVX-512")
    calls: list[int] = []
    product = few_tokens.product
    monkeypatch.setattr(few_tokens, "product", lambda x, *others: (calls.append(len(x)), product(x, *others))[1])
    monkeypatch.setattr(few_tokens, "is_usable", lambda: few)
    estate = Estate(tmp_path, "llama", {**WIDE, "tie_word_embeddings": tied})
    assert estate.why_not() == ""
    assert estate.largest_difference(TEXTS, most=3) < 1e-4
    assert (max(calls, default=0) > 8) == few
    assert estate.largest_difference({0: (70, 90), 1: (60,)}, most=60) < 1e-4


def test_low_rank_shifts_of_a_tied_embedding_reach_the_output_layer(tmp_path: Path) -> None:
    estate = Estate(tmp_path, "llama", {**WIDE, "tie_word_embeddings": True}, only=with_factors)
    assert estate.why_not() == ""
    assert estate.deltas[0].lowrank.keys() >= {"embed_tokens.weight"}
    assert estate.largest_difference(TEXTS, most=7) < 1e-4


def test_a_task_with_more_tokens_in_its_vocabulary(tmp_path: Path) -> None:
    def grow(model: Any) -> None:
        model.resize_token_embeddings(model.config.vocab_size + 8)

    estate = Estate(tmp_path, "llama", {**WIDE, "tie_word_embeddings": True}, change=grow)
    assert estate.why_not() == ""
    assert "embed_tokens.weight" in estate.deltas[0].dense
    assert estate.largest_difference(TEXTS, most=7) < 1e-4


def test_half_precision_mixes_within_its_rounding(tmp_path: Path) -> None:
    estate = Estate(tmp_path, "llama", {**WIDE, "tie_word_embeddings": True}, dtype=torch.bfloat16)
    assert estate.why_not() == ""
    assert estate.largest_difference(TEXTS, most=7) < 0.1


def test_a_step_that_fails_leaves_all_texts_as_they_were(tmp_path: Path) -> None:
    estate = Estate(tmp_path, "llama", WIDE)
    past = estate.decoder.start()
    task = TaskChunks(estate.attached[0], estate.models[0], [Chunk([5, 6, 7], past)], [0])
    broken = estate.resident.backbone.layers[1].mlp.act_fn.register_forward_hook(_failing)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="out of order"):
            estate.steps.step([task])
        assert past.length == 0
        broken.remove()
        (logits,) = estate.steps.step([task])
    torch.testing.assert_close(logits[0], estate.alone(0, [5, 6, 7])[-1], rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        states = estate.resident.backbone(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state
    assert (states[0, -1] @ estate.resident.backbone.embed_tokens.weight.T - logits[0]).abs().max() > 1e-2


def _failing(*_: object) -> None:
    raise RuntimeError("out of order")


def test_a_step_needs_the_bases_weights_and_deltas_whose_values_are_their_own(tmp_path: Path) -> None:
    estate = Estate(tmp_path, "llama", WIDE)
    chunks = [Chunk([5], estate.decoder.start())]
    estate.resident.activate(estate.attached[0])
    with pytest.raises(ExchangeError, match="revert first"):
        estate.steps.step([TaskChunks(estate.attached[1], estate.models[1], chunks, [0])])
    estate.resident.revert()
    plain = estate.resident.attach(estate.deltas[0])
    with pytest.raises(ExchangeError, match="takes part in no mixed batches"):
        estate.steps.step([TaskChunks(plain, estate.models[0], chunks, [0])])


class _Scaled(nn.Linear):
    """An output layer that is none that mixing knows."""


def test_a_head_that_uses_the_embedding_in_its_own_way_does_not_mix(tmp_path: Path) -> None:
    estate = Estate(tmp_path, "llama", {**WIDE, "tie_word_embeddings": True})
    whole = estate.models[0].whole
    head = whole.lm_head
    head.__class__ = _Scaled
    assert "its head's lm_head.weight is the backbone's embed_tokens.weight" in estate.why_not()


def test_a_head_that_changes_the_states_first_does_not_mix(tmp_path: Path) -> None:
    estate = Estate(tmp_path, "llama", {**WIDE, "tie_word_embeddings": True})
    estate.models[0].whole.lm_head.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    assert "something else than the backbone's output" in estate.why_not()


def test_the_last_step_keeps_no_task_alive(tmp_path: Path) -> None:
    estate = Estate(tmp_path, "llama", WIDE)
    with torch.inference_mode():
        estate.steps.step([TaskChunks(estate.attached[0], estate.models[0], [Chunk([5], estate.decoder.start())], [0])])
    assert estate.steps._mixtures
    estate.steps.forget()
    assert not estate.steps._mixtures


def test_no_task_of_a_step_takes_another_ones_place_when_both_have_as_many_tokens(tmp_path: Path) -> None:
    """The same mixture serves several steps; other tasks, renewed ones too, get one of their own."""
    estate = Estate(tmp_path, "llama", WIDE)
    for number in (0, 1, 0):
        estate.attached[number] = estate.mixed.attach(dataclasses.replace(estate.deltas[number]))
        with torch.inference_mode():
            (logits,) = estate.steps.step(
                [TaskChunks(estate.attached[number], estate.models[number], [Chunk([9], estate.decoder.start())], [0])]
            )
        torch.testing.assert_close(logits[0], estate.alone(number, [9])[-1], rtol=1e-4, atol=1e-4)


def test_the_tasks_of_the_last_step_are_known_by_themselves_and_not_by_where_they_lay(tmp_path: Path) -> None:
    """Else another task, at the place in memory of one that has left, would get its mixture."""
    estate = Estate(tmp_path, "llama", {**WIDE, "tie_word_embeddings": True})
    bare = estate.mixed.attach(dataclasses.replace(estate.deltas[1], sparse={}))
    with torch.inference_mode():
        estate.steps.step([TaskChunks(bare, estate.models[1], [Chunk([9], estate.decoder.start())], [0])])
    left = weakref.ref(bare)
    del bare
    assert left() is not None
    with torch.inference_mode():
        task = TaskChunks(estate.attached[0], estate.models[0], [Chunk([9], estate.decoder.start())], [])
        estate.steps.step([task])
    assert left() is None
