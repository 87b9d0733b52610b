from __future__ import annotations

import builtins
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

from ken_core.bits import same_bits
from ken_core.checkpoint import open_base, open_tuned, wrap
from ken_core.deltafile import write
from ken_core.errors import CheckpointError
from ken_core.extraction import extract


@pytest.fixture
def copy(tiny_base, tmp_path) -> Path:
    """A copy of the tiny base's folder, to be damaged."""
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def edit_config(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return folder


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
    return [(int(low, 16), int(high, 16)) for low, high in spans]


def tiny_gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=90, n_embd=16, n_layer=1, n_head=2, n_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=1
    )


# what is read


def test_backbone_names_are_relative_to_the_backbone_and_sorted(base, tuned):
    assert list(base.backbone_tensors) == sorted(base.backbone_tensors)
    assert list(base.backbone_tensors) == list(tuned.backbone_tensors)
    assert "embeddings.word_embeddings.weight" in base.backbone_tensors


def test_tensors_hold_the_bits_of_the_file(base, tiny_base):
    stored = load_file(tiny_base / "model.safetensors")
    assert set(stored) == set(base.backbone_tensors)
    assert all(same_bits(stored[n], t) for n, t in base.backbone_tensors.items())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_backbone_tensors_lie_on_the_mapped_file(fresh_base, tiny_base):
    ranges = mapped_ranges((tiny_base / "model.safetensors").resolve())
    assert ranges
    for name, tensor in fresh_base.backbone_tensors.items():
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        assert any(low <= first and last <= high for low, high in ranges), name


def test_the_head_is_what_lies_outside_the_backbone(base, tuned):
    assert list(tuned.head_tensors) == ["classifier.bias", "classifier.weight"]
    assert tuned.head_tensors["classifier.weight"].shape == (3, 32)
    assert base.head_tensors == {}


def test_parameters_the_files_do_not_hold_are_no_backbone_tensors(tiny_base, save_noisy):
    folder = save_noisy(BertForMaskedLM, tiny_base)  # saved without a pooler, which AutoModel then initialises
    opened = open_base(str(folder))
    assert "pooler.dense.weight" in dict(opened.backbone.named_parameters())
    assert not [n for n in opened.backbone_tensors if n.startswith("pooler")]


def test_tied_weights_count_once(save_random):
    folder = save_random(GPT2LMHeadModel, tiny_gpt2())
    language_model, backbone = open_tuned(str(folder)), open_base(str(folder))
    assert language_model.head_tensors == {}
    assert set(language_model.backbone_tensors) == set(backbone.backbone_tensors)
    numel = sum(t.numel() for t in language_model.backbone_tensors.values())
    assert numel == sum(p.numel() for p in GPT2Model(tiny_gpt2()).parameters())


def test_a_head_of_its_own_beside_a_tied_backbone_is_found(save_random, save_noisy):
    folder = save_random(GPT2Model, tiny_gpt2())
    opened = open_tuned(str(save_noisy(GPT2ForSequenceClassification, folder, num_labels=4)))
    assert list(opened.head_tensors) == ["score.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_keep_the_dtype_they_are_stored_in(save_random, dtype):
    opened = open_base(str(save_random(GPT2Model, tiny_gpt2(), dtype=dtype)))
    assert {t.dtype for t in opened.backbone_tensors.values()} == {dtype}


@pytest.mark.parametrize("claimed", ["float16", "bfloat16", "float64", ...])
def test_the_stored_dtype_counts_whatever_the_config_claims(copy, claimed):
    stored = load_file(copy / "model.safetensors")
    opened = open_base(str(edit_config(copy, dtype=claimed)))
    assert all(same_bits(stored[n], t) for n, t in opened.backbone_tensors.items())


def test_a_model_is_opened_for_evaluation_and_without_gradients(base, tuned):
    for opened in (base, tuned):
        assert not opened.model.training
        assert not any(p.requires_grad for p in opened.model.parameters())


def test_tokenizer_files_are_read_as_they_are(base, tiny_base):
    assert base.tokenizer_file("tokenizer.json") == (tiny_base / "tokenizer.json").read_bytes()
    assert base.tokenizer_file("vocab.txt") is None


def test_a_real_base_opens_with_all_its_tensors(minilm):
    opened = open_base(str(minilm))
    assert sum(t.numel() for t in opened.backbone_tensors.values()) == 22_713_216


# refusals


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/mem cannot be read, even by root")
def test_a_file_beside_the_checkpoint_that_cannot_be_read_does_not_matter(copy):
    (copy / "notes.txt").symlink_to("/proc/self/mem")
    assert open_base(str(copy)).backbone_tensors


@pytest.mark.parametrize("opener", [open_base, open_tuned])
class TestBothOpenersRefuse:
    @pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "no/such/deep/folder", "../nothing"])
    def test_a_folder_that_does_not_exist(self, opener, name):
        with pytest.raises(CheckpointError, match="no such folder"):
            opener(name)

    def test_a_name_neither_here_nor_on_the_hub(self, opener):
        with pytest.raises(CheckpointError, match="'no-such-model' is no folder here"):
            opener("no-such-model")

    def test_a_file(self, opener, tiny_base):
        with pytest.raises(CheckpointError, match="is a file"):
            opener(str(tiny_base / "config.json"))

    def test_a_folder_without_config(self, opener, copy):
        (copy / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            opener(str(copy))

    @pytest.mark.parametrize("text", ["{", "[]", "{}", "null", '{"model_type": "no-such-architecture"}', "\ufffd"])
    def test_a_config_that_is_none(self, opener, copy, text):
        (copy / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=str(copy)):
            opener(str(copy))

    @pytest.mark.parametrize(("key", "value"), [("hidden_size", "wide"), ("hidden_size", 33), ("hidden_act", "nope")])
    def test_a_config_with_impossible_values(self, opener, copy, key, value):
        with pytest.raises(CheckpointError, match=str(copy)):
            opener(str(edit_config(copy, **{key: value})))

    def test_a_folder_without_weights(self, opener, copy):
        (copy / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            opener(str(copy))

    @pytest.mark.parametrize("keep", [0, 5, 60, 3000, -1])
    def test_a_truncated_weights_file(self, opener, copy, keep):
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match="safetensors file is damaged"):
            opener(str(copy))

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
    def test_a_file_that_git_lfs_did_not_fetch(self, opener, copy, name):
        digest = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 90888945\n"
        (copy / name).write_text(pointer)
        with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS .* `git lfs pull`"):
            opener(str(copy))

    def test_the_folder_that_a_trainer_keeps_its_checkpoints_in(self, opener, copy, tmp_path):
        out = tmp_path / "trained"
        for step, changed in ((500, 1), (1000, 3), (250, 2)):
            shutil.copytree(copy, out / f"checkpoint-{step}")
            os.utime(out / f"checkpoint-{step}", (changed, changed))
        with pytest.raises(CheckpointError, match=r"trained has no config\.json.*the latest is .*checkpoint-1000$"):
            opener(str(out))

    def test_weights_of_something_else(self, opener, copy):
        save_file({"something": torch.zeros(3)}, copy / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match="none of the weights a BertModel has"):
            opener(str(copy))

    def test_weights_of_other_shapes_than_the_config_asks_for(self, opener, copy):
        with pytest.raises(CheckpointError, match=str(copy)):
            opener(str(edit_config(copy, intermediate_size=72)))

    def test_a_checkpoint_that_wants_its_own_code_run(self, opener, copy):
        edit_config(copy, auto_map={"AutoConfig": "custom.C", "AutoModel": "custom.M"})
        with pytest.raises(CheckpointError, match="auto_map"):
            opener(str(copy))

    def test_code_of_an_unknown_architecture_even_if_someone_at_the_terminal_says_yes(
        self, opener, copy, tmp_path, monkeypatch
    ):
        mark = tmp_path / "ran"
        (copy / "custom.py").write_text(
            f"from transformers import BertConfig, BertModel\nopen({str(mark)!r}, 'w')\n"
            "class C(BertConfig):\n    model_type = 'custom'\n"
            "class M(BertModel):\n    config_class = C\n"
        )
        edit_config(copy, model_type="custom", auto_map={"AutoConfig": "custom.C", "AutoModel": "custom.M"})
        monkeypatch.setattr(builtins, "input", lambda *prompt: "y")
        with pytest.raises(CheckpointError):
            opener(str(copy))
        assert not mark.exists()


@pytest.mark.parametrize("names", [..., None, []])
def test_a_fine_tune_whose_config_names_no_architecture_is_refused(copy, names):
    with pytest.raises(CheckpointError, match="no architecture"):
        open_tuned(str(edit_config(copy, architectures=names)))


@pytest.mark.parametrize("name", ["NoSuchModel", "AutoModel", "logging", "BertConfig"])
def test_a_fine_tune_of_a_class_transformers_does_not_have_is_refused(copy, name):
    with pytest.raises(CheckpointError, match=f"{name!r}"):
        open_tuned(str(edit_config(copy, architectures=[name])))


# models in memory


def test_a_model_in_memory_gives_the_delta_that_its_folder_gives(base, tiny_tuned, tmp_path):
    model = BertForSequenceClassification.from_pretrained(tiny_tuned["topics"])
    from_memory = write(extract(base, wrap(model)), base, tmp_path / "memory")
    from_folder = write(extract(base, open_tuned(str(tiny_tuned["topics"]))), base, tmp_path / "folder")
    assert from_memory.digest == from_folder.digest


def test_a_model_that_is_still_being_trained_can_be_wrapped(base, tiny_tuned):
    model = BertForSequenceClassification.from_pretrained(tiny_tuned["topics"]).train()
    extract(base, wrap(model))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_made_in_memory_needs_a_folder_for_its_tokenizer(tiny_base):
    model = BertModel(BertModel.from_pretrained(tiny_base).config)
    model.config._name_or_path = ""
    model.name_or_path = ""
    with pytest.raises(CheckpointError):
        wrap(model)
    assert wrap(model, tiny_base).tokenizer_file("tokenizer.json") is not None


def test_a_class_that_is_not_transformers_own_is_refused(tiny_base):
    class Mine(BertModel):
        pass

    with pytest.raises(CheckpointError, match="Mine is no class of transformers"):
        wrap(Mine.from_pretrained(tiny_base))
