from __future__ import annotations

import json

import pytest
from transformers import (
    AlbertConfig,
    BertConfig,
    BloomConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from ken_core.config_readers import is_read
from ken_core.configs import check_config, portable, restore, with_the_bases
from ken_core.errors import ConfigMismatchError, DeltaFormatError

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 64,
    "hidden_act": "relu",
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 4),
        ("hidden_act", "gelu"),
        ("layer_norm_eps", 1e-5),
        ("hidden_size", 64),
        ("num_hidden_layers", 1),
        ("max_position_embeddings", 64),
        ("type_vocab_size", 1),
        ("vocab_size", 101),
        ("is_decoder", True),
        ("pad_token_id", 1),
        ("tie_word_embeddings", False),
        ("position_embedding_type", "relative_key"),
        ("pruned_heads", {"0": [1]}),
        ("fusion_config", {"patch_embeddings": True}),
    ],
)
def test_a_key_the_backbone_reads_is_refused_naming_it_and_both_values(key, value):
    ours = BertConfig(**SMALL)
    theirs = BertConfig(**SMALL | {key: value})
    with pytest.raises(ConfigMismatchError) as refusal:
        check_config(ours, theirs)
    assert f"{key} is {getattr(ours, key, None)!r} in the base and {value!r} in the fine-tune" in str(refusal.value)
    assert f"--ignore-config {key}" in str(refusal.value)


ENCODERS = [BertConfig, RobertaConfig, XLMRobertaConfig, ElectraConfig, AlbertConfig, CamembertConfig]


@pytest.mark.parametrize("config_class", ENCODERS)
@pytest.mark.parametrize(
    "told",
    [
        {"position_embedding_type": "absolute"},
        {"pruned_heads": {}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "6.2.0"}},
        {"a_note_of_the_trainers": [1, 2, 3]},
        {"pooler_type": "first_token_transform", "directionality": "bidi"},
    ],
    ids=lambda told: next(iter(told)),
)
def test_a_key_at_the_value_its_absence_means_and_a_key_nobody_reads_pass(config_class, told):
    check_config(config_class(**SMALL), config_class(**SMALL, **told))
    check_config(config_class(**SMALL, **told), config_class(**SMALL))


@pytest.mark.parametrize("key", ["position_buckets", "relative_attention"])
def test_a_key_that_only_the_code_of_the_backbone_reads_is_refused(key):
    """DeBERTa's own config class has defined its position buckets in some versions and not in others."""
    assert is_read(key, DebertaV2Config)
    assert not is_read(key, BertConfig)


def test_a_config_without_a_backbone_in_transformers_reads_every_key():
    class Own(BertConfig):
        model_type = "own"

    assert is_read("a_note_of_the_trainers", Own)


def test_of_a_key_that_is_ignored_the_bases_value_is_taken():
    ours, theirs = BertConfig(**SMALL), BertConfig(**SMALL | {"layer_norm_eps": 1e-5, "hidden_act": "gelu"})
    theirs.position_embedding_type = "relative_key"
    with pytest.raises(ConfigMismatchError, match="hidden_act"):
        check_config(ours, with_the_bases(ours, theirs, ["layer_norm_eps", "position_embedding_type"]))
    agreed = with_the_bases(ours, theirs, ["layer_norm_eps", "position_embedding_type", "hidden_act"])
    check_config(ours, agreed)
    assert agreed.layer_norm_eps == ours.layer_norm_eps
    assert not hasattr(agreed, "position_embedding_type")
    assert theirs.layer_norm_eps == 1e-5


def test_ignoring_a_key_changes_no_key_that_may_differ():
    ours, theirs = BertConfig(**SMALL), BertConfig(**SMALL, num_labels=7)
    assert with_the_bases(ours, theirs, ["id2label", "num_labels"]).num_labels == 7


def test_another_architecture_cannot_be_ignored():
    ours = BertConfig(**SMALL)
    changed = with_the_bases(ours, RobertaConfig(**SMALL), ["model_type"])
    with pytest.raises(ConfigMismatchError, match=r"'bert'.*'roberta'"):
        check_config(ours, changed)


def test_every_differing_key_is_named_at_once():
    with pytest.raises(ConfigMismatchError, match=r"hidden_act.*num_attention_heads is 8 .* 4"):
        check_config(BertConfig(**SMALL), BertConfig(**SMALL | {"num_attention_heads": 4, "hidden_act": "gelu"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 7},
        {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}},
        {"problem_type": "multi_label_classification"},
        {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0},
        {"classifier_dropout": 0.2},
        {"architectures": ["BertForSequenceClassification"]},
        {"dtype": "bfloat16"},
        {"initializer_range": 0.5},
        {"use_cache": False},
    ],
    ids=lambda c: next(iter(c)),
)
def test_keys_that_heads_training_and_bookkeeping_read_may_differ(changes):
    check_config(BertConfig(**SMALL), BertConfig(**SMALL | changes))
    check_config(BertConfig(**SMALL | changes), BertConfig(**SMALL))


def test_equal_configs_pass_also_after_the_way_through_json():
    config = BertConfig(**SMALL, num_labels=3)
    check_config(config, BertConfig(**json.loads(json.dumps(config.to_dict()))))


@pytest.mark.parametrize("theirs", [RobertaConfig(**SMALL), DistilBertConfig(vocab_size=100), GPT2Config()])
def test_another_architecture_is_refused_naming_both(theirs):
    with pytest.raises(ConfigMismatchError, match=f"'bert'.*'{theirs.model_type}'"):
        check_config(BertConfig(**SMALL), theirs)


@pytest.mark.parametrize("config_class", [GPT2Config, LlamaConfig, BloomConfig])
def test_a_decoders_padding_token_may_differ(config_class):
    check_config(config_class(pad_token_id=None), config_class(pad_token_id=5))


@pytest.mark.parametrize("config_class", [RobertaConfig, BertConfig, DistilBertConfig])
def test_an_encoders_padding_token_may_not(config_class):
    """RoBERTa counts positions from it."""
    with pytest.raises(ConfigMismatchError, match="pad_token_id is 1 in the base and 2"):
        check_config(config_class(pad_token_id=1), config_class(pad_token_id=2))


def test_the_vocabulary_may_differ_only_where_the_fine_tune_brings_its_own_embedding():
    ours, theirs = BertConfig(**SMALL), BertConfig(**SMALL | {"vocab_size": 105})
    check_config(ours, theirs, resized=True)
    with pytest.raises(ConfigMismatchError, match="vocab_size is 100 in the base and 105"):
        check_config(ours, theirs)


def test_bringing_an_embedding_of_its_own_excuses_no_other_key():
    with pytest.raises(ConfigMismatchError, match="hidden_act"):
        check_config(BertConfig(**SMALL), BertConfig(**SMALL | {"hidden_act": "gelu"}), resized=True)


# the config a delta carries


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SMALL, num_labels=3, hidden_dropout_prob=0.3),
        RobertaConfig(**SMALL, id2label={0: "x", 1: "y"}, problem_type="single_label_classification"),
        DistilBertConfig(vocab_size=90, seq_classif_dropout=0.4),
        GPT2Config(pad_token_id=7, n_embd=16),
    ],
    ids=lambda c: c.model_type,
)
def test_a_portable_config_is_json_and_restores_to_the_same(config):
    config.architectures = ["Some"]
    plain = json.loads(json.dumps(portable(config)))
    restored = restore(plain)
    assert type(restored) is type(config)
    ours, theirs = config.to_dict(), restored.to_dict()
    assert {k: ours[k] for k in ours if k != "transformers_version"} == {
        k: theirs[k] for k in theirs if k != "transformers_version"
    }


def test_a_portable_config_names_no_path_no_version_and_no_code():
    config = BertConfig(**SMALL, auto_map={"AutoModel": "x.y"})
    config._name_or_path = "/home/someone/secret"
    plain = portable(config)
    assert not {"auto_map", "_name_or_path", "transformers_version"} & set(plain)
    assert "/home/someone" not in json.dumps(plain)


def test_a_config_that_asks_for_its_own_code_is_refused():
    with pytest.raises(DeltaFormatError, match="auto_map"):
        restore({**portable(BertConfig(**SMALL)), "auto_map": {"AutoModel": "x.y"}})


def nested(depth: int):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": ...},
        {"model_type": "no-such"},
        {"model_type": 3},
        {"hidden_size": "wide"},
        {"hidden_size": [32]},
        {"id2label": {"a": "b"}},
        {"id2label": ["a", "b"]},
        {"id2label": 3},
        {"num_labels": "many"},
        {"self": 1},
        {"dtype": "os"},
        {"dtype": "no_such_dtype"},
        {"to_dict": 1},
        {"to_diff_dict": 1},
        {"__class__": 1},
    ],
    ids=str,
)
def test_an_untrusted_config_with_impossible_values_is_refused(changes):
    plain = {k: v for k, v in {**portable(BertConfig(**SMALL)), **changes}.items() if v is not ...}
    with pytest.raises((DeltaFormatError, ConfigMismatchError)):
        check_config(BertConfig(**SMALL), restore(plain))


@pytest.mark.parametrize("depth", [100, 300, 700, 900])
def test_a_deeply_nested_untrusted_config_is_refused(depth):
    with pytest.raises((DeltaFormatError, ConfigMismatchError)):
        check_config(BertConfig(**SMALL), restore({**portable(BertConfig(**SMALL)), "deep": nested(depth)}))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_an_untrusted_config_cannot_ask_for_a_kernel_from_the_hub(key):
    """``attn_implementation="someone/repository"`` makes transformers download and run that repository's code."""
    with pytest.raises((DeltaFormatError, ConfigMismatchError)):
        check_config(BertConfig(**SMALL), restore({**portable(BertConfig(**SMALL)), key: "someone/kernel"}))


def test_an_untrusted_number_of_labels_is_refused_before_their_names_are_made():
    with pytest.raises(DeltaFormatError):
        restore({**portable(BertConfig(**SMALL)), "num_labels": 2_000_000})
