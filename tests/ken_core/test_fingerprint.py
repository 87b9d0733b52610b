from __future__ import annotations

import copy as copying
import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForMaskedLM, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from ken_core.bits import as_bits
from ken_core.checkpoint import open_base, open_tuned
from ken_core.fingerprint import fingerprint


def digest(checkpoint) -> str:
    return fingerprint(checkpoint.backbone_tensors).digest


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, BertForMaskedLM])
def test_the_bare_model_and_the_model_with_a_head_of_one_checkpoint_agree(tiny_base, save_noisy, model_class):
    folder = str(save_noisy(model_class, tiny_base))
    assert digest(open_base(folder)) == digest(open_tuned(folder))


def test_a_language_model_with_tied_weights_agrees_with_its_bare_model(save_random):
    config = GPT2Config(vocab_size=90, n_embd=16, n_layer=1, n_head=2, n_positions=20, bos_token_id=1, eos_token_id=1)
    folder = str(save_random(GPT2LMHeadModel, config))
    assert digest(open_base(folder)) == digest(open_tuned(folder))


def test_opening_again_gives_the_same_although_random_tensors_are_initialised_anew(tiny_base, save_noisy):
    folder = str(save_noisy(BertForMaskedLM, tiny_base))  # without a pooler
    first, second = open_base(folder), open_base(folder)
    assert not torch.equal(first.model.pooler.dense.weight, second.model.pooler.dense.weight)
    assert digest(first) == digest(second)


def test_a_copy_of_the_folder_under_another_name_has_the_same_fingerprint(base, tiny_base, tmp_path):
    assert digest(open_base(str(shutil.copytree(tiny_base, tmp_path / "elsewhere")))) == digest(base)


def test_what_the_config_claims_about_the_dtype_changes_no_fingerprint(base, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "claims")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    assert digest(open_base(str(folder))) == digest(base)


@given(data=st.data())
def test_one_changed_bit_anywhere_changes_it(base, data):
    tensors = dict(base.backbone_tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    changed = tensors[name].clone()
    position, bit = data.draw(st.integers(0, changed.numel() - 1)), data.draw(st.integers(0, 31))
    as_bits(changed)[position] ^= 1 << bit
    before, after = fingerprint(tensors), fingerprint(tensors | {name: changed})
    assert after.digest != before.digest
    assert {n for n in tensors if after.tensors[n] != before.tensors[n]} == {name}


def test_name_dtype_and_shape_count():
    zeros = torch.zeros(4)
    variants = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.reshape(2, 2)},
        {"a": zeros.view(torch.int32)},
        {"a": -zeros},
        {"a": zeros, "b": zeros},
        {},
    ]
    assert len({fingerprint(v).digest for v in variants}) == len(variants)


def test_the_order_of_the_tensors_does_not_count(base):
    backwards = dict(reversed(base.backbone_tensors.items()))
    assert fingerprint(backwards).digest == digest(base)


def test_layout_in_memory_does_not_count():
    square = torch.arange(16.0).reshape(4, 4)
    transposed = copying.deepcopy(square).T.contiguous().T
    assert not transposed.is_contiguous()
    assert fingerprint({"w": transposed}) == fingerprint({"w": square})
