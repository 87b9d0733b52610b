from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from architectures import ARCHITECTURES, BUFFERED, BY_NAME, DTYPES, HEADS, VOCABULARY, Architecture
from round_trip import (
    EVERYTHING,
    Answers,
    RoundTrip,
    answers_of_folder,
    round_trip,
    same_answers,
    same_state,
    state_of,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Llama4TextConfig, LukeConfig, NomicBertConfig, PreTrainedModel

from ken_core.bits import same_bits
from ken_core.checkpoint import open_base, open_tuned
from ken_core.errors import BaseMismatchError, CheckpointError
from ken_core.extraction import extract
from ken_core.resident import ResidentModel
from ken_core.selection import Budget, Selection


class Case(NamedTuple):
    architecture: str
    head: str
    dtype: str


def pairs(case: tuple[Hashable, ...]) -> set[Hashable]:
    """All pairs of a case's values, each value with its place."""
    return set(combinations(enumerate(case), 2))


def pairwise(cases: Sequence[tuple[Hashable, ...]]) -> list[tuple[Hashable, ...]]:
    """A small part of the cases that contains every pair of values which occurs in any case.

    Greedy: always take the case that adds the most pairs; among equals, the first.
    """
    chosen = []
    missing = set().union(*map(pairs, cases))
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def marked(cases: Sequence[tuple[str, ...]]) -> list[object]:
    """Parameters for a test: all cases; those that add no pair are marked slow."""
    cover = pairwise(cases)
    return [pytest.param(c, id="-".join(c), marks=() if c in cover else pytest.mark.slow) for c in cases]


CASES = [Case(a.name, head, dtype) for a in ARCHITECTURES for head in a.heads for dtype in DTYPES]
KEN_BY_ROW = Selection("ken", Budget("row", 0.3))


@pytest.fixture(scope="module")
def base_of(save_random) -> Callable[[Architecture, str], Path]:
    """``base_of(architecture, dtype)``: the folder of a random backbone, made once."""

    @cache
    def make(name: str, dtype: str) -> Path:
        return save_random(AutoModel.from_config, {**BY_NAME, **BUFFERED}[name].config(), dtype=DTYPES[dtype])

    return lambda architecture, dtype: make(architecture.name, dtype)


# the matrix


def test_the_table_has_every_head_that_transformers_has():
    for architecture in ARCHITECTURES:
        config_class = type(architecture.config())
        known = [name for name, auto_class in HEADS.items() if config_class in auto_class._model_mapping]
        assert list(architecture.heads) == known, architecture.name


def test_every_pair_of_architecture_head_and_dtype_is_tested_by_default():
    by_default = [param.values[0] for param in marked(CASES) if not param.marks]
    assert set().union(*map(pairs, by_default)) == set().union(*map(pairs, CASES))
    assert len(by_default) < len(CASES) / 2


@pytest.fixture(scope="module", params=marked(CASES))
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def trip(case, base_of, save_noisy) -> Iterator[RoundTrip]:
    """A fine-tune of the case, of which every other is pruned by rows."""
    architecture, dtype = BY_NAME[case.architecture], DTYPES[case.dtype]
    base = base_of(architecture, case.dtype)
    tuned = save_noisy(HEADS[case.head], base, dtype=dtype)
    selection = KEN_BY_ROW if CASES.index(case) % 2 else Selection()
    yield round_trip(base, tuned, selection, out=tuned.parent, dtype=dtype if architecture.mixes_dtypes else None)
    shutil.rmtree(tuned.parent)


@pytest.fixture(scope="module")
def expected(case, trip, batch) -> Answers:
    """What transformers answers from the folder `apply` wrote."""
    cast = BY_NAME[case.architecture].mixes_dtypes
    return answers_of_folder(HEADS[case.head], trip.applied, batch, dtype=DTYPES[case.dtype], cast=cast)


def test_a_served_delta_answers_bit_for_bit_as_its_applied_folder(trip, batch, expected):
    assert same_answers(trip.served(trip.packed, batch), expected)


def test_a_materialised_delta_answers_bit_for_bit_as_its_applied_folder(trip, batch, expected):
    assert same_answers(trip.served(trip.materialised, batch), expected)


def test_a_head_answers_bit_for_bit_from_an_output_that_the_backbone_has_computed_before(trip, batch, expected):
    assert same_answers(trip.served_by_the_head(trip.packed, batch), expected)


def test_the_answers_are_numbers_and_others_than_without_the_delta(case, trip, batch, expected):
    assert {t.dtype for t in expected.values()} == {DTYPES[case.dtype]}
    assert all(torch.isfinite(t).all() for t in expected.values())
    without = trip.served(None, batch)
    assert not any(same_bits(without[name], t) for name, t in expected.items())


def test_revert_restores_every_bit_of_the_base(case, trip, base_of):
    architecture, dtype = BY_NAME[case.architecture], DTYPES[case.dtype]
    base = AutoModel.from_pretrained(base_of(architecture, case.dtype), dtype=dtype)
    original = state_of(base.to(dtype) if architecture.mixes_dtypes else base)
    for attached in (trip.packed, trip.materialised):
        trip.resident.activate(attached)
        assert not same_state(state_of(trip.resident.backbone), original)
        trip.resident.revert()
        assert same_state(state_of(trip.resident.backbone), original)
        assert trip.resident.verify() == []


def test_a_delta_activated_again_answers_as_before(trip, batch, expected):
    for attached in (trip.packed, trip.materialised, trip.packed):
        trip.resident.revert()
        assert same_answers(trip.served(attached, batch), expected)


# tied weights, added tokens


@pytest.fixture
def served_as_applied(batch) -> Callable[..., RoundTrip]:
    """``served_as_applied(head, base, tuned, dtype, selection, inputs)``: assert that packed and materialised deltas
    answer as the applied folder does; returns the round trip."""

    def check(
        head: str,
        base: Path,
        tuned: Path,
        dtype: torch.dtype = torch.float32,
        selection: Selection | None = None,
        inputs: dict[str, torch.Tensor] = batch,
    ) -> RoundTrip:
        trip = round_trip(base, tuned, selection, out=tuned.parent)
        expected = answers_of_folder(HEADS[head], trip.applied, inputs, dtype=dtype)
        assert all(torch.isfinite(t).all() for t in expected.values())
        for attached in (trip.packed, trip.materialised):
            assert same_answers(trip.served(attached, inputs), expected)
            assert trip.resident.verify() == []
        return trip

    return check


DECODERS = [a.name for a in ARCHITECTURES if "causal-lm" in a.heads and "masked-lm" not in a.heads]


@pytest.mark.parametrize(
    "language_model", marked(list(product(DECODERS, ["tied", "untied"], ["features", "causal-lm"])))
)
def test_a_language_model_carries_its_output_layer_unless_it_is_the_embedding(
    save_random, save_noisy, served_as_applied, language_model
):
    """Whether the base was saved as a backbone or as a language model."""
    name, tied, saved_as = language_model
    base = save_random(HEADS[saved_as].from_config, BY_NAME[name].config(tie_word_embeddings=tied == "tied"))
    trip = served_as_applied("causal-lm", base, save_noisy(HEADS["causal-lm"], base))
    assert len(trip.delta.head) == (0 if tied == "tied" else 1)
    output = trip.model.get_output_embeddings().weight
    assert (output is trip.model.get_input_embeddings().weight) == (tied == "tied")


def test_an_output_layer_unlike_the_embedding_is_served_though_the_config_ties_them(
    save_random, save_noisy, served_as_applied, batch
):
    """transformers trusts the file's dtype, not the config's."""
    base = save_random(AutoModel.from_config, BY_NAME["gpt2"].config())
    tuned = save_noisy(HEADS["causal-lm"], base)
    stored = load_file(tuned / "model.safetensors")
    other = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(3))
    save_file({**stored, "lm_head.weight": other}, tuned / "model.safetensors", {"format": "pt"})
    trip = served_as_applied("causal-lm", base, tuned, selection=EVERYTHING)
    expected = answers_of_folder(HEADS["causal-lm"], tuned, batch, dtype=torch.float32)
    assert same_answers(trip.served(trip.packed, batch), expected)


@pytest.fixture(scope="module")
def beyond(batch) -> dict[str, torch.Tensor]:
    """A batch whose every sequence has an added token."""
    ids = batch["input_ids"].clone()
    ids[:, 1] = torch.tensor([VOCABULARY, VOCABULARY + 3, VOCABULARY + 8])
    return {**batch, "input_ids": ids}


RESIZED = [
    ("bert", "sequence", "tied"),
    ("bert", "masked-lm", "tied"),
    ("roberta", "masked-lm", "tied"),
    ("deberta-v2", "tokens", "tied"),
    ("electra", "answers", "tied"),
    ("albert", "masked-lm", "tied"),
    ("modernbert", "masked-lm", "tied"),
    ("gpt2", "causal-lm", "tied"),
    ("bloom", "causal-lm", "tied"),
    ("llama", "causal-lm", "untied"),
    ("qwen2", "causal-lm", "tied"),
    ("gemma2", "features", "tied"),
    ("opt", "causal-lm", "tied"),
]


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        pytest.param(model, dtype, id="-".join((*model, dtype)), marks=() if row % 3 == column else pytest.mark.slow)
        for row, model in enumerate(RESIZED)
        for column, dtype in enumerate(DTYPES)
    ],
)
def test_added_tokens_are_served_as_they_are_applied(save_random, save_noisy, served_as_applied, beyond, model, dtype):
    name, head, tied = model
    config = BY_NAME[name].config(tie_word_embeddings=tied == "tied")
    base = save_random(AutoModel.from_config, config, dtype=DTYPES[dtype])
    tuned = save_noisy(HEADS[head], base, dtype=DTYPES[dtype], resize=VOCABULARY + 9)
    trip = served_as_applied(head, base, tuned, DTYPES[dtype], inputs=beyond)
    assert {t.shape[0] for t in trip.delta.dense.values()} == {VOCABULARY + 9}


def test_a_base_answers_as_before_after_a_fine_tune_with_added_tokens(save_random, save_noisy, batch, beyond):
    base = save_random(AutoModel.from_config, BY_NAME["gpt2"].config())
    tuned = save_noisy(HEADS["causal-lm"], base, resize=VOCABULARY + 9)
    trip = round_trip(base, tuned, out=tuned.parent)
    before = trip.served(None, batch)
    assert before["logits"].shape[-1] == VOCABULARY
    assert trip.served(trip.packed, beyond)["logits"].shape[-1] == VOCABULARY + 9
    assert same_answers(trip.served(None, batch), before)


# persistent buffers


def floating_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The persistent buffers of the backbone, by backbone-relative name."""
    saved = model.base_model.state_dict()
    return {n: b for n, b in model.base_model.named_buffers() if n in saved and b.is_floating_point()}


def move_buffers(model: PreTrainedModel) -> None:
    for buffer in floating_buffers(model).values():
        buffer += 0.25 + 0.5 * torch.rand(buffer.shape).to(buffer.dtype)


@pytest.fixture(params=BUFFERED)
def buffered(request) -> Architecture:
    return BUFFERED[request.param]


@pytest.fixture(params=["float32", "bfloat16"])
def moved(request, buffered, base_of, save_noisy) -> tuple[Path, Path, torch.dtype]:
    """A base, a fine-tune that moved its buffers too, and their dtype."""
    base, dtype = base_of(buffered, request.param), DTYPES[request.param]
    return base, save_noisy(HEADS["causal-lm"], base, dtype=dtype, edit=move_buffers), dtype


def test_these_backbones_have_buffers_that_are_saved_with_them(buffered, base_of):
    assert floating_buffers(open_base(str(base_of(buffered, "float32"))).model)


@pytest.mark.parametrize("selection", [Selection(), EVERYTHING], ids=["a tenth", "everything"])
def test_buffers_a_fine_tune_moved_are_served_as_they_are_applied(moved, served_as_applied, selection):
    base, tuned, dtype = moved
    served_as_applied("causal-lm", base, tuned, dtype, selection)


def test_buffers_a_fine_tune_moved_arrive(moved, batch):
    base, tuned, dtype = moved
    trip = round_trip(base, tuned, EVERYTHING, out=tuned.parent)
    wanted = floating_buffers(HEADS["causal-lm"].from_pretrained(tuned, dtype=dtype))
    for attached in (trip.packed, trip.materialised):
        trip.resident.activate(attached)
        found = floating_buffers(trip.model)
        assert all(same_bits(found[name], buffer) for name, buffer in wanted.items())
    expected = answers_of_folder(HEADS["causal-lm"], tuned, batch, dtype=dtype)
    assert same_answers(trip.served(trip.packed, batch), expected)


def test_buffers_a_fine_tune_moved_leave_with_it(moved):
    base, tuned, dtype = moved
    trip = round_trip(base, tuned, EVERYTHING, out=tuned.parent)
    original = state_of(AutoModel.from_pretrained(base, dtype=dtype))
    for attached in (trip.packed, trip.materialised):
        trip.resident.activate(attached)
        trip.resident.revert()
        assert same_state(state_of(trip.resident.backbone), original)
        assert trip.resident.verify() == []


def test_buffers_that_differ_make_another_base(buffered, base_of, save_noisy):
    """Otherwise a delta would be injected into a backbone that computes something else."""
    base = base_of(buffered, "float32")
    other = save_noisy(AutoModel, base, scale=0.0, edit=move_buffers)
    with pytest.raises(BaseMismatchError):
        ResidentModel(open_base(str(other))).attach(
            extract(open_base(str(base)), open_tuned(str(save_noisy(HEADS["causal-lm"], base))))
        )


def test_buffers_no_fine_tune_moved_are_in_the_applied_folder(buffered, base_of, save_noisy):
    base = base_of(buffered, "float32")
    tuned = save_noisy(HEADS["causal-lm"], base)
    trip = round_trip(base, tuned, EVERYTHING, out=tuned.parent)
    stored = load_file(trip.applied / "model.safetensors")
    for name, buffer in floating_buffers(AutoModel.from_pretrained(base)).items():
        assert same_bits(stored[f"model.{name}"], buffer)


def test_buffers_are_served_in_bfloat16_as_transformers_opens_them(buffered, base_of, save_noisy, batch):
    """transformers keeps buffers in float32 that must not be narrowed, for example a router's bias."""
    base = base_of(buffered, "float32")
    tuned = save_noisy(HEADS["causal-lm"], base, edit=move_buffers)
    trip = round_trip(base, tuned, EVERYTHING, out=tuned.parent, dtype=torch.bfloat16)
    wanted = floating_buffers(HEADS["causal-lm"].from_pretrained(tuned, dtype=torch.bfloat16))
    expected = answers_of_folder(HEADS["causal-lm"], tuned, batch, dtype=torch.bfloat16)
    for attached in (trip.packed, trip.materialised):
        assert same_answers(trip.served(attached, batch), expected)
        found = floating_buffers(trip.model)
        assert all(same_bits(found[name], buffer) for name, buffer in wanted.items())


# heads that are unlike the others


def test_a_tie_inside_a_head_may_name_the_carried_weight_either_way(save_random, save_noisy, served_as_applied):
    """LUKE ties ``lm_head.bias`` to ``lm_head.decoder.bias``, BERT the inner name to the outer."""
    small = {**BY_NAME["roberta"].sizes, "entity_vocab_size": 8, "entity_emb_size": 8}
    base = save_random(AutoModel.from_config, LukeConfig(**small))
    served_as_applied("masked-lm", base, save_noisy(HEADS["masked-lm"], base))


def test_a_fine_tune_with_a_backbone_part_that_the_base_has_no_place_for_is_refused(save_random, save_noisy):
    """Nomic's classifier pools inside its backbone, its bare backbone does not: one backbone cannot be both."""
    base = save_random(AutoModel.from_config, NomicBertConfig(**BY_NAME["roberta"].sizes))
    tuned = open_tuned(str(save_noisy(HEADS["sequence"], base)))
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.(weight|bias)"):
        extract(open_base(str(base)), tuned)


def test_a_fine_tune_whose_class_does_not_say_where_its_backbone_is_is_refused(save_random, save_noisy):
    """Llama 4's language model names a prefix that it has no module of."""
    small = {**BY_NAME["llama"].sizes, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
    base = save_random(AutoModel.from_config, Llama4TextConfig(**small))
    tuned = open_tuned(str(save_noisy(HEADS["causal-lm"], base)))
    with pytest.raises(CheckpointError, match="Llama4ForCausalLM"):
        extract(open_base(str(base)), tuned)
