"""Scales fitted to texts: what they do to a layer's output, and what they leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.delta import Delta, merge
from ken_core.deltafile import load, write
from ken_core.errors import DataError
from ken_core.extraction import extract
from ken_core.scales import fit_scales
from ken_core.selection import Budget, Selection
from ken_core.tokenization import Encoder, collate
from tests.tiny_checkpoints import TEXTS, write_tuned

QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def delta(base: Checkpoint, tuned: Checkpoint) -> Delta:
    return extract(base, tuned, Selection("magnitude", Budget(fraction=0.1)))


@pytest.fixture(scope="module")
def fitted(base: Checkpoint, tuned: Checkpoint, delta: Delta) -> Delta:
    return fit_scales(base, tuned, delta, TEXTS)


def inputs_of(tuned: Checkpoint, delta: Delta, base: Checkpoint, module: str) -> torch.Tensor:
    """What a layer of the fine-tune is given for the tokens of `TEXTS`, without padding."""
    model, encoder, seen = copy.deepcopy(tuned.model), Encoder.of(base, delta), []
    layer = model.base_model.get_submodule(module)
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].reshape(-1, given[0].shape[-1])))
    with torch.no_grad():
        for row in encoder(TEXTS):
            model(**collate([row], encoder.pad_id, torch.device("cpu")))
    return torch.cat(seen)


def test_no_other_factor_of_an_output_does_better(base, tuned, delta, fitted):
    given = inputs_of(tuned, delta, base, QUERY.removesuffix(".weight")).double()
    ours, theirs = (c.backbone_tensors[QUERY].double() for c in (base, tuned))
    plain, scaled = (merge(base, d)[QUERY].double() - ours for d in (delta, fitted))
    whole = given @ (theirs - ours).T

    def left(shift: torch.Tensor) -> torch.Tensor:
        return ((whole - given @ shift.T) ** 2).sum(dim=0)

    kept = plain.abs().sum(dim=1) > 0
    assert (left(scaled) <= left(plain) * (1 + 1e-6) + 1e-12)[kept].all()
    for factor in (0.9, 1.1):
        assert (left(scaled) <= left(scaled * factor) + 1e-9)[kept].all()
    assert float(left(scaled).sum()) < 0.95 * float(left(plain).sum())


def test_an_output_has_one_factor_and_positions_stay(base, delta, fitted):
    entry, other, ours = delta.sparse[QUERY], fitted.sparse[QUERY], base.backbone_tensors[QUERY]
    assert (entry.positions == other.positions).all()
    before, after = merge(base, delta)[QUERY] - ours, merge(base, fitted)[QUERY] - ours
    for row in range(len(ours)):
        kept = before[row] != 0
        if kept.any():
            factors = after[row][kept] / before[row][kept]
            assert torch.allclose(factors, factors[:1].expand_as(factors), rtol=2e-2), row


def test_embeddings_and_vectors_are_left_alone(base, delta, fitted):
    linear = {f"{n}.weight" for n, m in base.backbone.named_modules() if isinstance(m, nn.Linear)}
    others = delta.sparse.keys() - linear
    assert others
    for name in others:
        assert (delta.sparse[name].values == fitted.sparse[name].values).all()


def test_the_file_says_to_how_many_texts_it_was_fitted(base, delta, fitted, tmp_path):
    assert delta.fitted is None
    file = write(fitted, base, tmp_path / "d.ken", "int4")
    assert file.manifest.fitted == load(file.path, base).fitted == len(TEXTS)


def test_the_fine_tune_itself_stays_as_it_was(base, tuned, delta):
    before = {n: t.clone() for n, t in tuned.backbone_tensors.items()}
    fit_scales(base, tuned, delta, TEXTS)
    assert all(torch.equal(t, before[n]) for n, t in tuned.backbone_tensors.items())
    assert not any(m._forward_pre_hooks for m in tuned.model.modules())


def test_transposed_layers_are_scaled_by_column(tmp_path, tiny_base):
    """GPT-2's layers hold (inputs, outputs)."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=100, n_positions=32, num_labels=3, pad_token_id=0)
    tuned_model = GPT2ForSequenceClassification(config)
    base_model = copy.deepcopy(tuned_model.transformer)
    with torch.no_grad():
        for parameter in tuned_model.transformer.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    base_model.save_pretrained(tmp_path / "base")
    tuned_model.save_pretrained(tmp_path / "tuned")
    for file in tiny_base.glob("*token*"):
        for folder in ("base", "tuned"):
            (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    base, tuned = open_base(str(tmp_path / "base")), open_tuned(str(tmp_path / "tuned"))
    delta = extract(base, tuned, Selection("magnitude", Budget(fraction=0.1)))
    name = "h.0.attn.c_attn.weight"
    ours = base.backbone_tensors[name]
    before, after = (merge(base, d)[name] - ours for d in (delta, fit_scales(base, tuned, delta, TEXTS)))
    for column in range(ours.shape[1]):
        kept = before[:, column] != 0
        if kept.any():
            factors = after[kept, column] / before[kept, column]
            assert torch.allclose(factors, factors[:1].expand_as(factors), rtol=2e-2), column


def test_a_pooler_whose_vectors_are_as_long_as_the_texts_is_not_taken_for_tokens(base, tuned, delta):
    words = " ".join(["r"] * 30)  # with the special tokens as many as a hidden vector has numbers
    (row,) = Encoder.of(base, delta)([words])
    assert len(row) == base.config.hidden_size
    name, seen = "pooler.dense.weight", []
    model = copy.deepcopy(tuned.model)
    model.base_model.pooler.dense.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
    with torch.no_grad():
        model(**collate([row], Encoder.of(base, delta).pad_id, torch.device("cpu")))
    ours, theirs = (c.backbone_tensors[name].double() for c in (base, tuned))
    plain, scaled = (merge(base, d)[name].double() for d in (delta, fit_scales(base, tuned, delta, [words])))
    whole, kept, fitted = ((seen[0] @ (matrix - ours).T)[0] for matrix in (theirs, plain, scaled))
    wanted = (whole / kept).clamp(0.0, 8.0) * kept  # one text: its effect is met exactly, as far as scales may go
    assert torch.allclose(fitted[kept != 0], wanted[kept != 0], atol=1e-5)


def test_random_tokens_stand_in_where_no_text_is_at_hand(base, tuned, delta, tmp_path):
    blind = fit_scales(base, tuned, delta, None)
    ours = base.backbone_tensors[QUERY]
    whole, plain, scaled = (
        t - ours for t in (tuned.backbone_tensors[QUERY], merge(base, delta)[QUERY], merge(base, blind)[QUERY])
    )
    given = inputs_of(tuned, delta, base, QUERY.removesuffix(".weight"))
    lost, left = (float((given @ (whole - kept).T).square().sum()) for kept in (plain, scaled))
    assert left < lost
    assert write(blind, base, tmp_path / "d.ken", "int4").manifest.fitted == 0
    assert fit_scales(base, tuned, delta, None).sparse[QUERY].values.tolist() == blind.sparse[QUERY].values.tolist()


def test_weights_that_the_fine_tune_lacks_are_the_bases_own(tiny, tmp_path):
    """Transformers fills them with random numbers, and a fit to these would be one to nothing."""
    folder = write_tuned(tiny.base_folder, tmp_path / "tuned", ["a", "b"], 10)
    frozen = "bert.embeddings.word_embeddings.weight"
    held = load_file(folder / "model.safetensors")
    complete = {**held, frozen: tiny.base.backbone_tensors[frozen.removeprefix("bert.")]}
    fits = []
    for tensors in (complete, {name: tensor for name, tensor in held.items() if name != frozen}):
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        tuned = open_tuned(str(folder))
        given = extract(tiny.base, tuned, Selection("magnitude", Budget(fraction=0.1)))
        fits.append(fit_scales(tiny.base, tuned, given, TEXTS).sparse[QUERY].values.tolist())
    assert fits[0] == fits[1]


def test_without_texts_there_is_nothing_to_fit_to(base, tuned, delta):
    with pytest.raises(DataError, match="there is none"):
        fit_scales(base, tuned, delta, [])


def test_a_delta_that_keeps_nothing_is_not_fitted(base, tuned):
    nothing = extract(base, tuned, Selection("magnitude", Budget(fraction=0.0)))
    assert fit_scales(base, tuned, nothing, TEXTS) is nothing
