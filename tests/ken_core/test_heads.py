from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from ken_core.bits import same_bits
from ken_core.checkpoint import open_base, open_tuned
from ken_core.configs import portable
from ken_core.delta import apply
from ken_core.errors import DeltaFormatError
from ken_core.extraction import extract
from ken_core.heads import graft
from ken_core.selection import Budget, Selection

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ARCHITECTURES = {
    "bert": (BertModel, BertForSequenceClassification, lambda: BertModel.config_class(**SMALL)),
    "distilbert": (
        DistilBertModel,
        DistilBertForSequenceClassification,
        lambda: DistilBertConfig(
            vocab_size=96, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
        ),
    ),
    "roberta": (RobertaModel, RobertaForSequenceClassification, lambda: RobertaConfig(**SMALL)),
    "electra": (ElectraModel, ElectraForSequenceClassification, lambda: ElectraConfig(**SMALL, embedding_size=16)),
    "deberta-v2": (
        DebertaV2Model,
        DebertaV2ForSequenceClassification,
        lambda: DebertaV2Config(
            **SMALL,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            position_biased_input=False,
        ),
    ),
    "gpt2": (
        GPT2Model,
        GPT2ForSequenceClassification,
        lambda: GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=40, **TOKENS),
    ),
    "modernbert": (
        ModernBertModel,
        ModernBertForSequenceClassification,
        lambda: ModernBertConfig(**SMALL, **TOKENS, cls_token_id=1, sep_token_id=2),
    ),
    "llama": (LlamaModel, LlamaForSequenceClassification, lambda: LlamaConfig(**SMALL, **TOKENS)),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, save_random, save_noisy) -> tuple[Path, Path]:
    """Folders of a random base and of a classifier fine-tuned from it."""
    model_class, classifier_class, config = ARCHITECTURES[request.param]
    base = save_random(model_class, config())
    return base, save_noisy(classifier_class, base, num_labels=3)


def test_a_grafted_model_answers_bit_for_bit_as_the_fine_tune(pair, batch, served, answers):
    tuned = open_tuned(str(pair[1]))
    delta = extract(open_base(str(pair[0])), tuned, Selection(budget=Budget(fraction=1.0)))
    expected = answers(tuned, batch)
    assert expected.std(dim=0).min() > 0
    assert same_bits(served(pair[0], delta, batch), expected)
    assert same_bits(served(pair[0], delta, batch, materialised=True), expected)


def test_a_pruned_model_answers_bit_for_bit_as_its_applied_folder(pair, batch, served, answers, tmp_path):
    base = open_base(str(pair[0]))
    delta = extract(base, open_tuned(str(pair[1])))
    apply(base, delta, tmp_path / "out")
    assert same_bits(served(pair[0], delta, batch), answers(tmp_path / "out", batch))


# what a graft is


def test_the_backbone_is_shared_not_copied(fresh_base, tuned):
    model = graft(fresh_base.backbone, "BertForSequenceClassification", portable(tuned.config), tuned.head_tensors)
    other = graft(fresh_base.backbone, "BertForSequenceClassification", portable(tuned.config), tuned.head_tensors)
    assert model.base_model is other.base_model is fresh_base.backbone


def test_nothing_is_left_without_memory_and_nothing_trains(fresh_base, tuned):
    model = graft(fresh_base.backbone, "BertForSequenceClassification", portable(tuned.config), tuned.head_tensors)
    assert not any(t.is_meta for t in model.state_dict().values())
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_heads_of_different_sizes_stand_on_one_backbone(fresh_base, tiny_tuned, batch):
    models = {}
    for name, folder in tiny_tuned.items():
        tuned = open_tuned(str(folder))
        models[name] = graft(
            fresh_base.backbone, "BertForSequenceClassification", portable(tuned.config), tuned.head_tensors
        )
    with torch.no_grad():
        shapes = {name: tuple(model(**batch).logits.shape) for name, model in models.items()}
    assert shapes == {"topics": (3, 3), "mood": (3, 2), "stars": (3, 5)}


def test_a_tied_output_layer_is_the_backbones_embedding(save_random):
    config = GPT2Config(vocab_size=96, n_embd=16, n_layer=1, n_head=2, n_positions=20, **TOKENS)
    backbone = open_base(str(save_random(GPT2Model, config))).backbone
    model = graft(backbone, "GPT2LMHeadModel", portable(config), {})
    assert isinstance(model, GPT2LMHeadModel)
    assert model.lm_head.weight is backbone.wte.weight


def test_an_architecture_without_a_head_is_the_backbone_itself(fresh_base):
    assert graft(fresh_base.backbone, "BertModel", portable(fresh_base.config), {}) is fresh_base.backbone


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("name", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_torchs_default_dtype_is_left_alone(name, dtype, monkeypatch):
    """It is the whole process's: on other threads, kernels would write float32 into tensors of that dtype."""
    changed = []
    monkeypatch.setattr(torch, "set_default_dtype", changed.append)
    config = LlamaConfig(**SMALL, **TOKENS)
    whole = getattr(transformers, f"LlamaFor{name}")(config)
    head = {n: t for n, t in whole.state_dict().items() if not n.startswith(f"{whole.base_model_prefix}.")}
    changed.clear()
    model = graft(LlamaModel(config), f"LlamaFor{name}", portable(config) | {"dtype": dtype}, head)
    assert changed == []
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# refusals


@pytest.fixture
def refused(fresh_base, tuned):
    """``refused(architecture, head changes, config changes)``: grafting raises `DeltaFormatError`; its message."""

    def check(architecture="BertForSequenceClassification", head=None, **config) -> str:
        changed = {n: t for n, t in (tuned.head_tensors | (head or {})).items() if t is not None}
        with pytest.raises(DeltaFormatError) as refusal:
            graft(fresh_base.backbone, architecture, portable(tuned.config) | config, changed)
        return str(refusal.value)

    return check


@pytest.mark.parametrize("name", ["classifier.weight", "classifier.bias"])
def test_a_missing_head_tensor_is_refused_naming_it(refused, name):
    assert name in refused(head={name: None})


@pytest.mark.parametrize(
    "name",
    [
        "extra",
        "classifier.extra",
        "classifier",
        "classifier.weight.data",
        "no.such.module.weight",
        "dropout.p",
        "classifier.forward",
        "__class__",
    ],
)
def test_a_head_tensor_of_no_place_is_refused_naming_it(refused, name):
    assert name in refused(head={name: torch.zeros(3)})


@pytest.mark.parametrize(
    "name", ["bert.pooler.dense.bias", "bert.encoder.layer.0.output.dense.bias", "bert.embeddings.position_ids"]
)
def test_a_head_tensor_inside_the_shared_backbone_is_refused(refused, fresh_base, name):
    """Such a tensor would change the answers of every other task for good."""
    place = fresh_base.backbone.get_submodule(name.split(".", 1)[1].rpartition(".")[0])
    key = name.rpartition(".")[2]
    before = getattr(place, key)
    assert name in refused(head={name: torch.full_like(before, 7)})
    assert getattr(place, key) is before


@pytest.mark.parametrize("shape", [(3, 31), (32, 3), (96,), (2, 32), ()])
def test_a_head_tensor_of_another_shape_is_refused_naming_both_shapes(refused, shape):
    message = refused(head={"classifier.weight": torch.zeros(shape)})
    assert "classifier.weight" in message
    assert str(list(shape)) in message
    assert "[3, 32]" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_head_tensor_that_is_no_floating_point_number_is_refused(refused, dtype):
    assert "classifier.weight" in refused(head={"classifier.weight": torch.ones(3, 32, dtype=dtype)})


def test_a_head_for_another_number_of_labels_than_the_config_is_refused(refused):
    labels = {str(i): str(i) for i in range(4)}
    assert "classifier" in refused(id2label=labels, label2id={v: int(k) for k, v in labels.items()})


def test_a_head_for_an_architecture_without_one_is_refused(refused):
    assert "classifier" in refused("BertModel")


@pytest.mark.parametrize("name", ["NoSuchModel", "AutoModel", "BertConfig", "logging", "__name__", ""])
def test_a_name_that_is_no_model_of_transformers_is_refused(refused, name):
    assert repr(name) in refused(name)


@pytest.mark.parametrize(
    "name",
    [
        "RobertaForSequenceClassification",
        "DistilBertForSequenceClassification",
        "GPT2ForSequenceClassification",
        "T5ForSequenceClassification",
        "LlamaForCausalLM",
        "EncoderDecoderModel",
        "CLIPModel",
    ],
)
def test_an_architecture_on_another_backbone_is_refused_naming_it(refused, name):
    assert name in refused(name)


def test_a_delta_of_an_abstract_class_is_refused_and_harms_no_later_delta(refused, fresh_base):
    """transformers remembers on a class what it found out when first building it, and subclasses inherit that."""
    head = {"cls.seq_relationship.weight": torch.zeros(2, 32), "cls.seq_relationship.bias": torch.zeros(2)}
    before = set(vars(PreTrainedModel))
    try:
        refused("PreTrainedModel")
        refused("BertPreTrainedModel")
        # A class no other test has built:
        model = graft(fresh_base.backbone, "BertForNextSentencePrediction", portable(fresh_base.config), head)
    finally:
        for name in set(vars(PreTrainedModel)) - before:
            delattr(PreTrainedModel, name)
    assert isinstance(model, BertForNextSentencePrediction)
