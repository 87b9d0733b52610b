"""Token vectors are those of Transformers' pipeline on the applied folder; sentence embeddings are pooled from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sameness import assert_same
from transformers import AutoModel, AutoTokenizer

from serving.errors import InternalError, InvalidInputError
from serving.pipelines import default_kind
from serving.pipelines.base import Prepared
from serving.pipelines.sentence_embeddings import EmbeddingParameters, SentenceEmbeddings
from tests.tiny_architectures import TOKENIZERS, FineTune
from tests.tiny_checkpoints import TEXTS, WORDS

VECTORS, EMBEDDINGS = "feature-extraction", "sentence-embeddings"
INPUTS = [*TEXTS, "東京 MÜNCHEN 🙂"]
LONG = " ".join(WORDS)
POOLED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": lambda states, mask: states[:, 0],
    "last": lambda states, mask: states[torch.arange(len(states)), mask.sum(dim=1) - 1],
    "mean": lambda states, mask: (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True),
}
"""Of a batch padded on the right: as sentence-transformers pools, special tokens included."""


@pytest.fixture(scope="module")
def backbone(make_fine_tune_of: Callable[..., FineTune]) -> Callable[..., FineTune]:
    return lambda architecture="bert": make_fine_tune_of(architecture, "backbone", "features")


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_token_vectors_are_those_of_transformers(
    architecture: str, backbone: Callable[..., FineTune], dedicated_pipeline: Callable[..., Any]
) -> None:
    fine_tune = backbone(architecture)
    reference = dedicated_pipeline(VECTORS, fine_tune)
    for found, text in zip(fine_tune.ask(VECTORS, INPUTS), INPUTS, strict=True):
        np.testing.assert_allclose(found, reference(text)[0], atol=1e-5)


@pytest.mark.parametrize("architecture", TOKENIZERS)
def test_embeddings_are_pooled_from_the_applied_model(architecture: str, backbone: Callable[..., FineTune]) -> None:
    fine_tune = backbone(architecture)
    tokenizer = AutoTokenizer.from_pretrained(fine_tune.applied, padding_side="right")
    batch = tokenizer(INPUTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(fine_tune.applied).eval()(**batch).last_hidden_state
    for pooling, pool in POOLED.items():
        expected = pool(states, batch["attention_mask"])
        plain, unit = (fine_tune.ask(EMBEDDINGS, INPUTS, pooling=pooling, normalize=n) for n in (False, True))
        np.testing.assert_allclose(plain, expected, atol=1e-5)
        np.testing.assert_allclose(unit, torch.nn.functional.normalize(expected), atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "qwen2"])
def test_an_embedding_does_not_depend_on_who_else_asks(architecture: str, backbone: Callable[..., FineTune]) -> None:
    fine_tune = backbone(architecture)
    together = fine_tune.ask(EMBEDDINGS, INPUTS, normalize=True)
    assert_same(together, [fine_tune.ask(EMBEDDINGS, [text], normalize=True)[0] for text in INPUTS])


def test_without_a_word_about_it_token_vectors_are_averaged(backbone: Callable[..., FineTune]) -> None:
    fine_tune = backbone()
    assert fine_tune.ask(EMBEDDINGS, INPUTS) == fine_tune.ask(EMBEDDINGS, INPUTS, pooling="mean", normalize=False)


def test_fewer_dimensions_are_cut_off_before_vectors_are_scaled(backbone: Callable[..., FineTune]) -> None:
    fine_tune = backbone()
    whole = np.array(fine_tune.ask(EMBEDDINGS, INPUTS))[:, :8]
    found = fine_tune.ask(EMBEDDINGS, INPUTS, dimensions=8, normalize=True)
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(InvalidInputError, match="dimensions: found 33, but the model's vectors have 32"):
        fine_tune.ask(EMBEDDINGS, ["rain"], dimensions=33)


# What a task declares


def test_a_backbone_that_declares_its_pooling_gives_embeddings_and_another_token_vectors() -> None:
    assert default_kind("feature-extraction", True) == EMBEDDINGS
    assert default_kind("feature-extraction", False) == VECTORS


@pytest.mark.parametrize(
    ("declared", "pooling"), [("cls_token", "cls"), ("lasttoken", "last"), ("mean_tokens", "mean")]
)
def test_a_task_pools_and_scales_as_its_own_files_say_unless_a_request_says_otherwise(
    declared: str, pooling: str, make_fine_tune_of: Callable[..., FineTune]
) -> None:
    fine_tune = make_fine_tune_of("bert", f"declares-{pooling}", "features", pooling=declared)
    own = fine_tune.ask(EMBEDDINGS, INPUTS)
    assert own == fine_tune.ask(EMBEDDINGS, INPUTS, pooling=pooling, normalize=True)
    plain = fine_tune.ask(EMBEDDINGS, INPUTS, normalize=False)
    assert own != plain
    others = [fine_tune.ask(EMBEDDINGS, INPUTS, pooling=other, normalize=False) for other in POOLED if other != pooling]
    assert plain not in others


# Refusals


@pytest.mark.parametrize("kind", [VECTORS, EMBEDDINGS])
def test_a_text_that_would_be_cut_is_refused_by_its_place_where_that_is_not_allowed(
    kind: str, backbone: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=r"^inputs\.1: longer than the 64 tokens"):
        backbone().ask(kind, ["rain", LONG], truncation=False)


@pytest.mark.parametrize("kind", [VECTORS, EMBEDDINGS])
def test_a_text_without_a_token_is_refused_where_nothing_else_is_in_its_row(
    kind: str, backbone: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=r"^inputs\.1: .* no token"):
        backbone("qwen2").ask(kind, ["rain", ""])


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (EMBEDDINGS, {"pooling": "median"}),
        (EMBEDDINGS, {"dimensions": 0}),
        (EMBEDDINGS, {"normalize": "perhaps"}),
        (VECTORS, {"pooling": "mean"}),
    ],
)
def test_parameters_of_another_form_are_refused_by_name(
    kind: str, parameters: dict[str, Any], backbone: Callable[..., FineTune]
) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(parameters))):
        backbone().ask(kind, ["rain"], **parameters)


@pytest.mark.parametrize(("value", "length"), [(0.0, 0.0), (3e38, 1.0)])
def test_vectors_of_any_length_are_scaled_without_overflow(
    value: float, length: float, backbone: Callable[..., FineTune]
) -> None:
    states = np.full((3, 4), value, np.float32)
    with np.errstate(all="raise"):
        vector = SentenceEmbeddings().present(
            Prepared((), False), [states], backbone().spec, EmbeddingParameters(normalize=True)
        )
    assert np.linalg.norm(vector) == pytest.approx(length)


def test_vectors_that_are_no_numbers_are_an_error_and_no_null(backbone: Callable[..., FineTune]) -> None:
    states = np.full((3, 4), np.nan, np.float32)
    with pytest.raises(InternalError, match="not a number"):
        SentenceEmbeddings().present(Prepared((), False), [states], backbone().spec, EmbeddingParameters())
