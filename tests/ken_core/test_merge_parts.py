"""What a merge refuses, and what it takes from the part whose head it has."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertForSequenceClassification, BertModel

from ken_core.arithmetic import combine
from ken_core.bits import as_bits, pack_mask, same_bits
from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.container import open_file
from ken_core.delta import Delta, merge
from ken_core.deltafile import load, write
from ken_core.embedding import Embedding
from ken_core.entries import LowRank, Sparse
from ken_core.errors import BaseMismatchError, DeltaFormatError, MergeError
from ken_core.extraction import extract
from ken_core.manifest import MOST_PARENTS
from ken_core.merge_parts import Part
from ken_core.merge_recipe import MergeRecipe
from tests.ken_core.test_arithmetic import QUERY, parts_of

WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def delta(base: Checkpoint, tuned: Checkpoint) -> Delta:
    return extract(base, tuned)


@pytest.fixture(scope="module")
def resized(base: Checkpoint, save_noisy, tiny_base) -> Delta:
    """A delta with an embedding of its own size."""
    rows = len(base.backbone_tensors[WORDS]) + 3
    return extract(base, open_tuned(str(save_noisy(BertForSequenceClassification, tiny_base, resize=rows))))


def refused(base: Checkpoint, deltas: list[Delta], text: str, head: int = 0) -> None:
    with pytest.raises(MergeError, match=text):
        combine(base, parts_of(deltas, [0.5] * len(deltas)), MergeRecipe(), head)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_is_a_finite_number(delta, weight):
    with pytest.raises(MergeError, match=r"the weight of trec is .*; expected a finite number"):
        Part(delta, weight, "0" * 64, "trec")


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_a_density_is_a_share(density):
    with pytest.raises(MergeError, match="must lie above 0 and be at most 1"):
        MergeRecipe("ties", density)


def test_a_recipe_knows_its_methods():
    with pytest.raises(MergeError, match="unknown method 'mean'; choose one of linear"):
        MergeRecipe("mean")  # type: ignore[arg-type]
    with pytest.raises(MergeError, match="linear keeps shifts whole"):
        MergeRecipe("linear", 0.5)


def test_the_number_of_parts_and_the_head_are_checked(base, delta):
    refused(base, [], "found 0 deltas to merge; expected 1 to 256")
    refused(base, [delta] * (MOST_PARENTS + 1), "found 257 deltas")
    refused(base, [delta], "there are 1 parts, counted from 0", head=1)
    refused(base, [delta], "there are 1 parts, counted from 0", head=-1)


def test_weights_that_are_all_0_are_refused(base, delta):
    with pytest.raises(MergeError, match="all weights are 0"):
        combine(base, parts_of([delta, delta], [0.0, 0.0]), MergeRecipe())


def test_weights_whose_sum_is_infinite_are_refused(base, delta):
    with pytest.raises(MergeError, match="add up to inf; give smaller weights"):
        combine(base, parts_of([delta, delta], [1e308, -1e308]), MergeRecipe(normalize=True))


def test_a_delta_of_another_base_is_refused(base, delta):
    other = dataclasses.replace(delta, base_fingerprint="f" * 64)
    with pytest.raises(BaseMismatchError, match="f" * 64):
        combine(base, parts_of([delta, other]), MergeRecipe())


def test_another_type_of_model_is_refused(base, delta):
    other = dataclasses.replace(delta, config={**delta.config, "model_type": "electra"})
    refused(base, [delta, other], "differ in the type of the model: electra and bert")


def test_another_vocabulary_is_refused_and_other_settings_are_the_heads(base, delta):
    own = dataclasses.replace(delta, files={"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"})
    refused(base, [delta, own], r"differ in the tokenizer's vocabulary: its own \(44136fa355b3\) and the base's")
    settings = dataclasses.replace(delta, files={"tokenizer_config.json": b"{}"})
    for head, files in enumerate((delta.files, settings.files)):
        assert combine(base, parts_of([delta, settings]), MergeRecipe(), head).files == files


def test_other_settings_of_embeddings_are_refused(base, save_noisy, tiny_base):
    plain = extract(base, open_tuned(str(save_noisy(BertModel, tiny_base))))
    assert plain.kind == "feature-extraction"
    cls, mean = (dataclasses.replace(plain, embedding=Embedding(pooling=(name,))) for name in ("cls", "mean"))
    refused(base, [cls, mean], r"differ in the embeddings' pooling: \('mean',\) and \('cls',\)")
    assert combine(base, parts_of([plain, mean]), MergeRecipe(), 1).embedding == mean.embedding


def test_parts_may_be_of_several_kinds(base, delta, save_noisy, tiny_base):
    backbone = extract(base, open_tuned(str(save_noisy(BertModel, tiny_base))))
    for head, kind in enumerate(("text-classification", "feature-extraction")):
        assert combine(base, parts_of([delta, backbone]), MergeRecipe(), head).kind == kind


def test_a_resized_embedding_must_be_the_same_in_all_parts(base, delta, resized):
    text = f"do not have the same {WORDS!r}: the base's size and "
    refused(base, [resized, delta], text)
    refused(base, [delta, resized], f"do not have the same {WORDS!r}: .* and the base's size")
    other = dataclasses.replace(resized, dense={WORDS: resized.dense[WORDS] + 1})
    refused(base, [resized, other], "it must be the same in all parts")
    found = combine(base, parts_of([resized, resized]), MergeRecipe())
    assert same_bits(merge(base, found)[WORDS], resized.dense[WORDS])


def test_a_tensor_that_the_base_lacks_is_the_heads(save_random, save_noisy, tiny_base):
    """A base without a pooler, whose fine-tunes each bring one."""
    folder = save_random(BertModel, AutoConfig.from_pretrained(tiny_base))
    file = folder / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if not n.startswith("pooler")}, file, {"format": "pt"})
    base = open_base(str(folder))
    tuned = [save_noisy(BertForSequenceClassification, folder, seed=seed) for seed in (1, 2)]
    deltas = [extract(base, open_tuned(str(one))) for one in tuned]
    assert "pooler.dense.weight" in deltas[0].dense
    found = combine(base, parts_of(deltas), MergeRecipe(), head=1)
    assert same_bits(found.dense["pooler.dense.weight"], deltas[1].dense["pooler.dense.weight"])


def test_a_tensor_of_integers_has_no_shift(base, delta):
    tensors = {**base.backbone_tensors, "steps": torch.tensor([1, 2])}
    counted = dataclasses.replace(base)
    counted.__dict__["backbone_tensors"] = tensors
    counted.__dict__["identity"] = base.identity
    one = Sparse((2,), torch.int64, 1, pack_mask(torch.tensor([True, False]).numpy()), as_bits(torch.tensor([5])))
    refused(counted, [dataclasses.replace(delta, sparse={"steps": one})], "changes 'steps', which holds integers")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_that_are_too_large_are_refused(save_random, save_noisy, tiny_base, dtype):
    folder = save_random(BertModel, AutoConfig.from_pretrained(tiny_base), dtype=dtype)
    base = open_base(str(folder))
    delta = extract(base, open_tuned(str(save_noisy(BertForSequenceClassification, folder))))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(MergeError, match=f"are too large for {name}; give smaller weights"):
        combine(base, parts_of([delta], [torch.finfo(dtype).max * 1e3]), MergeRecipe())
    rank_1 = LowRank(torch.ones(1, 32, dtype=dtype), torch.ones(32, 1, dtype=dtype), 1.0)
    shifted = dataclasses.replace(delta, sparse={}, lowrank={QUERY: rank_1})
    with pytest.raises(MergeError, match=f"{QUERY}.* are too large for {name}"):
        combine(base, parts_of([shifted], [torch.finfo(dtype).max * 1e3]), MergeRecipe())


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        ({"parents": []}, "merged.parents"),
        ({"head": 1}, "the head is that of parent 1; there are 1"),
        ({"density": 0.0}, "merged.density"),
        ({"method": "mean"}, "merged.method"),
        ({"parents": [{"digest": "x", "weight": 1.0}]}, "merged.parents.0.digest"),
        ({"parents": [{"digest": "0" * 64, "weight": math.inf}]}, "merged.parents.0.weight|Infinity|JSON"),
        ({"by": "me"}, "merged.by"),
    ],
)
def test_a_record_that_no_merge_leaves_is_refused(base, delta, tmp_path, edit, text):
    found = combine(base, parts_of([delta], [1.0]), MergeRecipe())
    file = write(found, base, tmp_path / "d.ken")
    assert load(file.path, base).merged == found.merged
    manifest = file.manifest.plain()
    manifest["merged"] |= edit
    save_arrays(load_arrays(file.path), tmp_path / "edited.ken", {"ken": json.dumps(manifest)})
    with pytest.raises(DeltaFormatError, match=text):
        open_file(tmp_path / "edited.ken")
