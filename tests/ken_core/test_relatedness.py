from __future__ import annotations

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel

from ken_core.checkpoint import open_base, open_tuned
from ken_core.examples import Example
from ken_core.extraction import extract
from ken_core.finetune import Recipe, finetune
from ken_core.relatedness import cosine, is_related

EXAMPLES = [
    Example(text, label)
    for text, label in [
        ("who is the king", "person"),
        ("who was the actor", "person"),
        ("where is the city", "place"),
        ("where was the war", "place"),
    ]
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_cosine_is_that_of_the_tensors_as_vectors(dtype):
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(700, 500, generator=generator).to(dtype)
    theirs = (ours.float() + torch.randn(700, 500, generator=generator)).to(dtype)
    expected = torch.nn.functional.cosine_similarity(ours.double().flatten(), theirs.double().flatten(), dim=0)
    assert cosine(ours, theirs) == pytest.approx(float(expected), abs=1e-5)
    assert cosine(ours, torch.zeros_like(ours)) == 0.0


def test_a_new_embedding_alone_makes_no_other_model():
    assert is_related([0.0])
    assert is_related([0.0, *[1.0] * 39])
    assert not is_related([1.0, *[0.0] * 39])


@pytest.mark.parametrize("seed", [1, 2])
def test_a_model_trained_apart_is_told_from_a_fine_tune_of_the_base(base, save_random, seed):
    config = base.config.__class__(**{**base.config.to_dict(), "num_labels": 2})
    stranger = open_tuned(str(save_random(BertForSequenceClassification, config, seed=seed)))
    (warning,) = extract(base, stranger).warnings
    assert "this is hardly a fine-tune of" in warning


def test_a_model_whose_units_are_in_another_order_is_told_too(base, tiny_base, tmp_path):
    """Such a model computes the same, but its delta to this base would not be small."""
    model = BertModel.from_pretrained(tiny_base)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in model.parameters():
            for axis, size in enumerate(parameter.shape):
                if size == 32:
                    parameter.copy_(parameter.index_select(axis, order))
    model.save_pretrained(tmp_path / "reordered")
    (warning,) = extract(base, open_tuned(str(tmp_path / "reordered"))).warnings
    assert "hardly a fine-tune" in warning


def test_a_fine_tune_at_fifty_times_the_usual_learning_rate_is_still_one(tiny_base, tmp_path):
    finetune(str(tiny_base), EXAMPLES, tmp_path / "out", Recipe(epochs=30, batch_size=2, learning_rate=5e-3))
    delta = extract(open_base(str(tiny_base)), open_tuned(str(tmp_path / "out")))
    assert delta.warnings == ()


def test_the_fixtures_fine_tunes_raise_no_warning(base, tiny_tuned):
    for folder in tiny_tuned.values():
        assert extract(base, open_tuned(str(folder))).warnings == ()
