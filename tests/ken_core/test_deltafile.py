from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, BertModel, GPT2Config, GPT2ForSequenceClassification, GPT2Model

from ken_core.bits import from_bits, same_bits
from ken_core.checkpoint import open_base, open_tuned
from ken_core.codings import CODECS
from ken_core.delta import Delta, apply
from ken_core.deltafile import open_file, read, write
from ken_core.entries import patched
from ken_core.errors import BaseMismatchError, ConfigMismatchError, SelectionError
from ken_core.extraction import extract
from ken_core.fingerprint import fingerprint
from ken_core.manifest import Manifest
from ken_core.selection import ALLOWED_SCOPES, Budget, Selection
from ken_core.tensor_filter import EVERYTHING, PRESETS, TensorFilter


def assert_same(found: Delta, expected: Delta) -> None:
    plain = (
        "base_name",
        "base_fingerprint",
        "architecture",
        "selection",
        "candidates",
        "backbone_parameters",
        "embedding",
    )
    for field in plain:
        assert getattr(found, field) == getattr(expected, field), field
    assert json.loads(json.dumps(dict(found.config))) == json.loads(json.dumps(dict(expected.config)))
    assert dict(found.files) == dict(expected.files)
    assert set(found.sparse) == set(expected.sparse)
    for name, entry in expected.sparse.items():
        other = found.sparse[name]
        assert (other.shape, other.dtype, other.selected) == (entry.shape, entry.dtype, entry.selected)
        assert np.array_equal(other.mask, entry.mask)
        assert np.array_equal(other.values, entry.values)
    for part in ("dense", "head", "projections"):
        ours, theirs = getattr(expected, part), getattr(found, part)
        assert set(ours) == set(theirs)
        assert all(same_bits(ours[n], theirs[n]) for n in ours)


def identity(checkpoint) -> str:
    return fingerprint(checkpoint.backbone_tensors).digest


LOSSLESS = ["raw", "zstd"]
LOSSY = ["int8", "int4", "sign"]
filters = st.sampled_from(
    [EVERYTHING, PRESETS["attention"], TensorFilter(("encoder.layer.1.*", "embed*"), ("*bias",), "keep")]
)
selections = st.one_of(
    st.tuples(st.sampled_from([m for m in ALLOWED_SCOPES if m != "ken-grid"]), st.floats(0, 1)).map(
        lambda p: Selection(p[0], Budget("row", p[1]))
    ),
    st.tuples(st.sampled_from(["magnitude", "random"]), st.floats(0, 1), st.integers(0, 99)).map(
        lambda p: Selection(p[0], Budget("global", p[1]), p[2])
    ),
    st.tuples(st.sampled_from(list(ALLOWED_SCOPES)), st.integers(0, 99)).map(
        lambda p: Selection(p[0], Budget("row", k=p[1]))
    ),
    filters.map(lambda f: Selection(tensors=f)),
)


@settings(max_examples=30)
@given(selection=selections, codec=st.sampled_from(LOSSLESS))
def test_a_written_delta_reads_back_the_same(base, tuned, tmp_path, selection, codec):
    delta = extract(base, tuned, selection)
    file = write(delta, base, tmp_path / "d.safetensors", codec)
    assert_same(read(open_file(file.path), base, identity(base)), delta)


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_deltas_of_other_dtypes_with_resized_embeddings_read_back_the_same(
    save_random, save_noisy, tmp_path, dtype, codec
):
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=20, bos_token_id=1, eos_token_id=1)
    folder = save_random(GPT2Model, config, dtype=dtype)
    base = open_base(str(folder))
    delta = extract(base, open_tuned(str(save_noisy(GPT2ForSequenceClassification, folder, resize=63))))
    assert delta.dense
    assert_same(read(write(delta, base, tmp_path / "d", codec), base, identity(base)), delta)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_lossy_deltas_keep_positions_head_and_added_tokens_exactly_and_bring_values_nearer_than_the_base(
    save_random, save_noisy, tmp_path, dtype, codec
):
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=20, bos_token_id=1, eos_token_id=1)
    folder = save_random(GPT2Model, config, dtype=dtype)
    base = open_base(str(folder))
    delta = extract(base, open_tuned(str(save_noisy(GPT2ForSequenceClassification, folder, resize=63))))
    found = read(write(delta, base, tmp_path / "d", codec), base, identity(base))
    assert delta.dense
    for name, entry in delta.sparse.items():
        ours, theirs = from_bits(entry.values, dtype).double(), from_bits(found.sparse[name].values, dtype).double()
        moved = (ours - base.backbone_tensors[name].reshape(-1)[torch.from_numpy(entry.mask)].double()).abs()
        assert (ours - theirs).abs().mean() < {"int8": 0.02, "int4": 0.2, "sign": 0.5}[codec] * moved.mean()
    exact = {n: dataclasses.replace(s, values=delta.sparse[n].values) for n, s in found.sparse.items()}
    assert_same(dataclasses.replace(found, sparse=exact), delta)


def test_a_lossy_delta_of_nothing_and_of_one_value_are_files_too(base, tiny_base, save_noisy, tmp_path):
    def move_one(model):
        model.load_state_dict(BertModel.from_pretrained(tiny_base).state_dict())
        model.get_input_embeddings().weight[3, 6] += 0.5

    one = open_tuned(str(save_noisy(BertModel, tiny_base, edit=move_one)))
    for codec in CODECS:
        nothing = extract(base, open_tuned(str(tiny_base)))
        assert_same(read(write(nothing, base, tmp_path / f"0{codec}", codec), base, identity(base)), nothing)
        delta = extract(base, one, Selection(budget=Budget(fraction=1.0)))
        assert delta.stored == 1
        assert_same(read(write(delta, base, tmp_path / f"1{codec}", codec), base, identity(base)), delta)


def test_what_a_filter_leaves_out_is_reset_or_kept_in_full(base, tuned):
    only = TensorFilter(("*query*",), ("*.0.*",))
    reset = extract(base, tuned, Selection(budget=Budget(fraction=0.5), tensors=only))
    assert set(reset.sparse) == {f"encoder.layer.1.attention.self.query.{p}" for p in ("weight", "bias")}
    whole = extract(
        base, tuned, Selection(budget=Budget(fraction=0.5), tensors=dataclasses.replace(only, outside="keep"))
    )
    for name, ours in base.backbone_tensors.items():
        if name in reset.sparse:
            assert np.array_equal(whole.sparse[name].values, reset.sparse[name].values)
        else:
            assert same_bits(patched(ours, whole.sparse[name]), tuned.backbone_tensors[name])


def test_a_filter_that_covers_no_tensor_is_refused_naming_it(base, tuned):
    with pytest.raises(SelectionError, match=r"no tensor matches include \*qeury\*"):
        extract(base, tuned, Selection(tensors=TensorFilter(("*qeury*",))))


def test_the_file_and_the_store_name_the_backbones_parameters_as_ever(base, tuned, tmp_path):
    delta = extract(base, tuned, Selection("random", Budget("row", 0.5)))
    file = write(delta, base, tmp_path / "d")
    with safe_open(file.path, "np") as container:
        manifest = json.loads(container.metadata()["ken"])
    assert manifest["backbone"] == delta.backbone_parameters
    assert manifest == file.manifest.plain()
    assert Manifest.model_validate(manifest) == file.manifest


@pytest.mark.parametrize("named", ["backbone_parameters", "both"])
def test_a_file_that_names_them_otherwise_is_refused(named, base, tuned, tmp_path):
    file = write(extract(base, tuned), base, tmp_path / "d")
    plain = file.manifest.plain()
    count = plain["backbone"] if named == "both" else plain.pop("backbone")
    with pytest.raises(ValidationError, match="backbone"):
        Manifest.model_validate({**plain, "backbone_parameters": count})


def test_a_file_of_the_version_before_is_read(base, tuned, tmp_path):
    """Version 2 knew neither low-rank entries nor adapters."""
    delta = extract(base, tuned, Selection("random", Budget("row", 0.5)))
    file = write(delta, base, tmp_path / "new")
    with safe_open(file.path, "np") as container:
        manifest = json.loads(container.metadata()["ken"])
        streams = {name: container.get_tensor(name) for name in container.keys()}  # noqa: SIM118
    manifest["format"] = 2
    assert manifest.pop("lowrank") == {}
    assert manifest.pop("adapter") is None
    assert manifest.pop("embedding") is None
    assert manifest.pop("projections") == {}
    manifest |= {"pooling": "cls", "normalize": True}
    save_file(streams, tmp_path / "old", {"ken": json.dumps(manifest)})
    assert_same(read(open_file(tmp_path / "old"), base, identity(base)), delta)


def test_tokenizer_files_read_back_the_same(base, tiny_tuned, tmp_path):
    folder = Path(shutil.copytree(tiny_tuned["mood"], tmp_path / "tuned"))
    plain = json.loads((folder / "tokenizer.json").read_text())
    plain["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    delta = extract(base, open_tuned(str(folder)))
    assert set(delta.files) == {"tokenizer.json", "tokenizer_config.json"}
    assert_same(read(write(delta, base, tmp_path / "d"), base, identity(base)), delta)


def test_a_delta_of_nothing_is_a_file_too(base, tiny_base, tmp_path):
    delta = extract(base, open_tuned(str(tiny_base)))
    assert_same(read(write(delta, base, tmp_path / "d"), base, identity(base)), delta)


def test_minus_zero_and_denormals_survive(base, tiny_base, save_noisy, tmp_path):
    special = torch.tensor([-0.0, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38])

    def place(model):
        model.get_input_embeddings().weight[3, :6] = special

    tuned = open_tuned(str(save_noisy(BertModel, tiny_base, edit=place)))
    delta = extract(base, tuned, Selection(budget=Budget(fraction=1.0)))
    for codec in LOSSLESS:
        assert_same(read(write(delta, base, tmp_path / codec, codec), base, identity(base)), delta)


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_inputs_give_the_same_digest(tiny_base, tiny_tuned, tmp_path, codec):
    digests = set()
    for name in ("one", "two"):
        base, tuned = open_base(str(tiny_base)), open_tuned(str(tiny_tuned["topics"]))
        digests.add(write(extract(base, tuned), base, tmp_path / name, codec).digest)
    assert len(digests) == 1


def test_different_selections_codecs_and_fine_tunes_give_different_digests(base, tuned, tiny_tuned, tmp_path):
    other = open_tuned(str(tiny_tuned["mood"]))
    deltas = [
        (extract(base, tuned), "zstd"),
        *((extract(base, tuned), codec) for codec in CODECS if codec != "zstd"),
        (extract(base, tuned, Selection(tensors=PRESETS["attention"])), "zstd"),
        (extract(base, tuned, Selection(budget=Budget(fraction=0.2))), "zstd"),
        (extract(base, tuned, Selection("random", Budget("global", 0.1), seed=1)), "zstd"),
        (extract(base, tuned, Selection("random", Budget("global", 0.1), seed=2)), "zstd"),
        (extract(base, other), "zstd"),
    ]
    digests = {write(delta, base, tmp_path / str(i), codec).digest for i, (delta, codec) in enumerate(deltas)}
    assert len(digests) == len(deltas)


def test_the_digest_and_size_are_the_files(base, tuned, tmp_path):
    file = write(extract(base, tuned), base, tmp_path / "d.safetensors")
    data = (tmp_path / "d.safetensors").read_bytes()
    assert file.digest == hashlib.sha256(data).hexdigest()
    assert file.size == len(data)
    assert open_file(file.path) == file


def test_both_counts_are_reported(base, tiny_tuned, tmp_path):
    tuned = open_tuned(str(tiny_tuned["topics"]))
    same = {n: t.clone() for n, t in tuned.backbone_tensors.items()}
    same["embeddings.word_embeddings.weight"][:40] = base.backbone_tensors["embeddings.word_embeddings.weight"][:40]
    tuned.__dict__["backbone_tensors"] = same
    delta = extract(base, tuned, Selection(budget=Budget(fraction=1.0)))
    manifest = write(delta, base, tmp_path / "d").manifest
    assert manifest.selected == manifest.candidates == manifest.backbone_parameters
    assert manifest.stored == delta.stored <= manifest.selected - 40 * 32


def test_the_manifest_says_what_the_delta_is(base, tuned, tmp_path):
    selection = Selection("random", Budget("row", k=3), seed=7)
    manifest = write(extract(base, tuned, selection), base, tmp_path / "d").manifest
    assert manifest.base.fingerprint == identity(base)
    assert manifest.base.name == "tiny-bert"
    assert (manifest.method, manifest.budget.scope, manifest.budget.k, manifest.seed) == ("random", "row", 3, 7)
    assert (manifest.kind, manifest.labels) == ("text-classification", ["place", "person", "number"])
    assert manifest.codec == "zstd"


def test_two_labels_without_names_are_named_as_transformers_names_them(base, tiny_base, save_noisy, tmp_path):
    delta = extract(base, open_tuned(str(save_noisy(BertForSequenceClassification, tiny_base))))
    assert write(delta, base, tmp_path / "d").manifest.labels == ["LABEL_0", "LABEL_1"]


def test_labels_come_in_the_order_of_the_logits(base, tiny_base, save_noisy, tmp_path):
    labels = {i: f"name {i}" for i in range(12)}
    delta = extract(base, open_tuned(str(save_noisy(BertForSequenceClassification, tiny_base, id2label=labels))))
    assert write(delta, base, tmp_path / "d").manifest.labels == list(labels.values())


def test_the_default_codec_is_smaller_than_raw(base, tuned, tmp_path):
    delta = extract(base, tuned, Selection(budget=Budget(fraction=1.0)))
    sizes = {}
    for codec in CODECS:
        streams = load_file(write(delta, base, tmp_path / codec, codec).path)
        sizes[codec] = sum(t.nbytes for n, t in streams.items() if n.startswith("sparse/"))
    assert sizes["zstd"] < 0.9 * sizes["raw"]


def test_writing_over_an_old_file_replaces_it_whole_and_leaves_nothing_else(base, tuned, tmp_path, left_in_tmp_path):
    (tmp_path / "d").write_bytes(b"old" * 100_000)
    file = write(extract(base, tuned), base, tmp_path / "d")
    assert open_file(tmp_path / "d").digest == file.digest
    assert left_in_tmp_path() == ["d"]


def test_a_write_that_fails_leaves_the_old_file(base, tuned, tmp_path, left_in_tmp_path):
    (tmp_path / "d").write_bytes(b"old")
    delta = extract(base, tuned)
    with pytest.raises(KeyError):
        write(delta, open_tuned_without(base, next(iter(delta.sparse))), tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == b"old"
    assert left_in_tmp_path() == ["d"]


def open_tuned_without(base, name: str):
    other = open_base(str(base.folder))
    other.__dict__["backbone_tensors"] = {n: t for n, t in base.backbone_tensors.items() if n != name}
    return other


def test_another_base_is_refused_naming_both_fingerprints(base, tuned, tmp_path):
    file = write(extract(base, tuned), base, tmp_path / "d")
    with pytest.raises(BaseMismatchError) as refusal:
        read(file, base, "f" * 64)
    assert "f" * 64 in str(refusal.value)
    assert identity(base) in str(refusal.value)


def test_a_base_of_the_same_weights_and_another_config_is_refused(base, tuned, tiny_base, tmp_path):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "relu"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    file = write(extract(base, tuned), base, tmp_path / "d")
    with pytest.raises(ConfigMismatchError, match="hidden_act is 'relu' in the base and 'gelu' in the fine-tune"):
        read(file, open_base(str(folder)), identity(base))


def test_a_delta_read_from_its_file_applies_like_the_one_extracted(base, tuned, tmp_path):
    delta = extract(base, tuned)
    apply(base, delta, tmp_path / "direct")
    apply(base, read(write(delta, base, tmp_path / "d"), base, identity(base)), tmp_path / "read")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "read" / name).read_bytes()


def test_read_tensors_do_not_depend_on_the_file_any_more(base, tuned, tmp_path):
    file = write(extract(base, tuned), base, tmp_path / "d", "raw")
    delta = read(file, base, identity(base))
    before = {n: t.clone() for n, t in delta.head.items()}, {n: s.values.copy() for n, s in delta.sparse.items()}
    with file.path.open("r+b") as handle:
        handle.seek(-200, 2)
        handle.write(bytes(200))
    assert all(torch.equal(delta.head[n], t) for n, t in before[0].items())
    assert all(np.array_equal(delta.sparse[n].values, v) for n, v in before[1].items())
