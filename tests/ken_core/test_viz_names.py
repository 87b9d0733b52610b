"""Layers and kinds from real names of many architectures; which tensors are drawn; what files are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ken_core.viz.choice import layered_kinds, matching, typical
from ken_core.viz.errors import NoSuchTensorError
from ken_core.viz.labels import labels_of, safe_file_part
from ken_core.viz.names import place, short_names

_SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 1, "head_dim": 8}

# model type: (config, number of kinds in layers, a tensor of layer 1 and its short kind, a tensor of no layer)
ARCHITECTURES = {
    "bert": (
        _SMALL,
        16,
        ("attention.self.query", "encoder.layer.1.attention.self.query.weight"),
        "pooler.dense.weight",
    ),
    "roberta": (_SMALL, 16, ("output.dense.bias", "encoder.layer.1.output.dense.bias"), "embeddings.LayerNorm.bias"),
    "electra": (
        {**_SMALL, "embedding_size": 8},
        16,
        ("output.LayerNorm", "encoder.layer.1.output.LayerNorm.weight"),
        "embeddings_project.weight",
    ),
    "deberta": (
        _SMALL,
        13,
        ("attention.self.q_bias", "encoder.layer.1.attention.self.q_bias"),
        "embeddings.word_embeddings.weight",
    ),
    "deberta-v2": (
        _SMALL,
        16,
        ("attention.self.key_proj", "encoder.layer.1.attention.self.key_proj.weight"),
        "embeddings.LayerNorm.weight",
    ),
    "distilbert": (
        {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        16,
        ("ffn.lin1", "transformer.layer.1.ffn.lin1.weight"),
        "embeddings.position_embeddings.weight",
    ),
    "modernbert": (
        {**_SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        6,
        ("attn.Wqkv", "layers.1.attn.Wqkv.weight"),
        "final_norm.weight",
    ),
    "bloom": (
        {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        12,
        ("mlp.dense_h_to_4h", "h.1.mlp.dense_h_to_4h.weight"),
        "word_embeddings_layernorm.weight",
    ),
    "gpt2": (
        {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2},
        12,
        ("attn.c_attn.bias", "h.1.attn.c_attn.bias"),
        "wte.weight",
    ),
    "llama": (_SMALL, 9, ("mlp.gate_proj", "layers.1.mlp.gate_proj.weight"), "embed_tokens.weight"),
    "qwen2": (
        {**_SMALL, "num_key_value_heads": 1},
        12,
        ("self_attn.k_proj.bias", "layers.1.self_attn.k_proj.bias"),
        "norm.weight",
    ),
    "gemma": (_GROUPED, 9, ("self_attn.o_proj", "layers.1.self_attn.o_proj.weight"), "norm.weight"),
    "mixtral": (
        {**_GROUPED, "num_local_experts": 4},
        9,
        ("mlp.experts.down_proj", "layers.1.mlp.experts.down_proj"),
        "embed_tokens.weight",
    ),
}


def shapes_of(model_type: str) -> dict[str, tuple[int, ...]]:
    config = AutoConfig.for_model(model_type, **ARCHITECTURES[model_type][0])
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def named(request):
    return request.param, shapes_of(request.param)


def test_every_tensor_of_every_architecture_has_its_layer_and_kind(named):
    model_type, shapes = named
    _, kinds, (short, inside), outside = ARCHITECTURES[model_type]
    places = {name: place(name) for name in shapes}
    assert {p.layer for p in places.values()} == {None, 0, 1}
    assert len({p.kind for p in places.values() if p.layer is not None}) == kinds
    assert places[inside].layer == 1
    assert places[inside].kind == inside.replace(".1.", ".")
    assert short_names(shapes)[places[inside].kind] == short
    assert (places[outside].layer, places[outside].kind) == (None, outside)


def test_the_same_tensor_of_two_layers_is_of_one_kind(named):
    model_type, shapes = named
    found = {layer: {place(n).kind for n in shapes if place(n).layer == layer} for layer in (0, 1)}
    without = {"layers.attn_norm.weight"} if model_type == "modernbert" else set()  # its first layer has none
    assert found[0] == found[1] - without


def test_short_names_are_different_for_every_kind(named):
    _, shapes = named
    short = short_names(shapes)
    assert set(short) == {place(n).kind for n in shapes}
    assert len(set(short.values())) == len(short)
    assert not any(name.endswith(".weight") for name in short.values())


def test_the_first_number_is_the_layer_and_later_ones_stay_in_the_kind():
    found = place("encoder.block.7.layer.1.DenseReluDense.wi.weight")
    assert (found.layer, found.kind, found.stem) == (
        7,
        "encoder.block.layer.1.DenseReluDense.wi.weight",
        "encoder.block",
    )


@pytest.mark.parametrize("name", ["weight", "layer_1.weight", "a.b2.c", "x.1a.y", "x.-1.y", "x.².y", ""])
def test_a_name_without_a_number_of_its_own_has_no_layer(name):
    assert (place(name).layer, place(name).kind) == (None, name)


def test_a_name_that_starts_with_the_number_has_no_stem():
    assert (place("3.weight").layer, place("3.weight").kind, place("3.weight").stem) == (3, "weight", "")


def test_encoder_and_decoder_keep_what_tells_them_apart():
    short = short_names(["encoder.block.0.q.weight", "decoder.block.0.q.weight", "shared.weight"])
    assert set(short.values()) == {"encoder.block.q", "decoder.block.q", "shared"}


def test_names_that_would_be_the_same_when_shortened_are_not_shortened():
    assert set(short_names(["h.0.q.weight", "h.0.q"]).values()) == {"q.weight", "q"}
    assert set(short_names(["h.0.q.weight", "q.weight"]).values()) == {"h.q.weight", "q.weight"}


def test_by_default_a_kind_is_drawn_in_its_first_middle_and_last_layer():
    shapes = {f"h.{i}.{kind}.weight": (4, 4) for i in range(9) for kind in ("q", "k")}
    assert typical(shapes, 12) == [f"h.{i}.{kind}.weight" for kind in ("q", "k") for i in (0, 4, 8)]


@pytest.mark.parametrize("layers", [1, 2, 3, 48])
@pytest.mark.parametrize("kinds", [1, 4, 6, 7, 20])
@pytest.mark.parametrize("most", [1, 6, 12])
def test_no_more_matrices_are_drawn_than_there_is_room_for(layers, kinds, most):
    shapes = {f"h.{i}.m{kind}.weight": (4, 4) for i in range(layers) for kind in range(kinds)}
    chosen = typical({**shapes, "h.0.norm.weight": (4,), "embed.weight": (9, 4)}, most)
    assert 1 <= len(chosen) <= most
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(shapes)


def test_a_model_without_numbered_layers_gives_its_first_matrices():
    assert typical({"norm": (4,), "a": (4, 4), "b": (4, 4)}, 1) == ["a"]


def test_matrices_of_layers_stand_in_the_order_of_the_layers():
    shapes = {f"h.{i}.q": (2, 2) for i in (10, 9, 0)} | {"h.0.norm": (2,), "embed": (5, 2)}
    assert layered_kinds(shapes) == {"h.q": {0: "h.0.q", 9: "h.9.q", 10: "h.10.q"}}
    assert list(layered_kinds(shapes)["h.q"]) == [0, 9, 10]


def test_patterns_choose_tensors_in_the_models_order_each_once():
    shapes = {"h.0.k": (2, 2), "h.0.q": (2, 2), "h.1.q": (2, 2), "norm": (2,)}
    assert matching(shapes, ["*.q", "h.0.*", "norm"]) == ["h.0.k", "h.0.q", "h.1.q", "norm"]


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(NoSuchTensorError, match=r"'\*\.query'.*look like 'h.0.q'"):
        matching({"h.0.q": (2, 2)}, ["h.*", "*.query"])


def test_a_delta_is_called_after_its_file():
    assert labels_of([Path("a/trec.ken"), Path("b/mood.v2.ken")]) == ["trec", "mood.v2"]


def test_files_of_one_name_are_told_apart_by_their_folders():
    assert labels_of([Path("x/1/trec.ken"), Path("y/1/trec.ken"), Path("x/2/trec.ken"), Path("mood.ken")]) == [
        "x/1/trec",
        "y/1/trec",
        "2/trec",
        "mood",
    ]


def test_a_file_given_twice_has_two_labels():
    paths = [Path("trec.ken"), Path("trec.ken"), Path("trec (2).ken"), Path("trec.delta")]
    assert len(set(labels_of(paths))) == 4


def test_a_label_can_always_be_written():
    (label,) = labels_of([Path(os.fsdecode(b"bad\xff\n\x1b[31m.ken"))])
    assert label.isprintable()
    label.encode()


@pytest.mark.parametrize("text", ["../../etc/passwd", "a b<c>", "x" * 500, "ümläut", "a/b"])
def test_a_part_of_a_files_name_is_safe_and_short(text):
    safe = safe_file_part(text)
    assert 1 <= len(safe) <= 100
    assert all(c.isascii() and (c.isalnum() or c in "_.-") for c in safe)


def test_long_names_that_differ_at_the_end_make_different_files():
    assert safe_file_part("x" * 200 + "a") != safe_file_part("x" * 200 + "b")
