"""Deltas of causal language models: a tied head once, grouped heads, half precision, more tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ken_core import Budget, Delta, ResidentModel, Selection, apply, deltafile, extract, graft, open_base, open_tuned
from ken_core.generation_settings import FILE
from tests.tiny_language_models import write_language_model

SELECTIONS = {
    "svd": Selection("svd", Budget(nbytes=6000)),
    "magnitude": Selection("magnitude", Budget(fraction=0.1)),
    "magnitude-row": Selection("magnitude", Budget("row", 0.1)),
    "ken": Selection("ken", Budget("row", 0.1)),
    "ken-shift": Selection("ken-shift", Budget("row", 0.1)),
    "ken-grid": Selection("ken-grid", Budget("row", k=4)),
    "random": Selection("random", Budget(fraction=0.1)),
}
EMBEDDING = "embed_tokens.weight"


def write_fine_tune(base: Path, folder: Path, *, more_tokens: int = 0) -> Path:
    """A copy of a model in which every weight has moved, with a chat template and settings of its own."""
    torch.manual_seed(5)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    if more_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": [f"<|tool_{i}|>" for i in range(more_tokens)]})
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.05 * torch.randn(parameter.shape)).to(parameter.dtype)
    model.generation_config.temperature, model.generation_config.do_sample = 0.3, True
    model.save_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language") / "base")


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fine_tune(base, tmp_path_factory.mktemp("language") / "tuned")


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    return found


def served(base: Path, path: Path, ids: torch.Tensor) -> tuple[torch.Tensor, Delta]:
    """The answers of a delta's file on the resident base, and the delta."""
    opened, resident = open_base(str(base)), ResidentModel(open_base(str(base)))
    delta = deltafile.load(path, opened)
    attached = resident.attach(delta)
    resident.activate(attached)
    with torch.inference_mode():
        found = graft(resident.backbone, delta.architecture, delta.config, attached.head)(ids).logits
    resident.revert()
    assert resident.verify() == []
    return found, delta


@pytest.mark.parametrize("by", SELECTIONS)
def test_every_method_keeps_a_tied_head_once_and_is_served_as_its_folder_answers(
    base: Path, tuned: Path, tmp_path: Path, by: str
) -> None:
    ours = open_base(str(base))
    made = extract(ours, open_tuned(str(tuned)), SELECTIONS[by], codec="int4" if by == "svd" else "zstd")
    file = deltafile.write(made, ours, tmp_path / "d.ken", "int4" if by == "svd" else "zstd")
    ids = torch.arange(3, 19)[None]
    found, delta = served(base, file.path, ids)
    assert not delta.head
    apply(ours, delta, tmp_path / "applied")
    torch.testing.assert_close(found, logits_of(tmp_path / "applied", ids), rtol=1e-4, atol=1e-4)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "applied")
    assert whole.lm_head.weight.data_ptr() == whole.get_input_embeddings().weight.data_ptr()
    assert (found - logits_of(base, ids)).abs().max() > 0


def test_a_delta_brings_its_chat_template_and_its_settings_of_generation(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    ours = open_base(str(base))
    apply(ours, extract(ours, open_tuned(str(tuned))), tmp_path / "applied")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "applied")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "the king"}], tokenize=False) == "[the king]"
    assert json.loads((tmp_path / "applied" / FILE).read_text())["temperature"] == 0.3


def test_a_fine_tune_in_half_precision_keeps_its_own_values_bit_for_bit(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(base, half)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    tuned = write_fine_tune(half, tmp_path / "tuned")
    ours, theirs = open_base(str(half)), open_tuned(str(tuned))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    file = deltafile.write(extract(ours, theirs, Selection(budget=Budget(fraction=1.0))), ours, tmp_path / "d.ken")
    ids = torch.arange(3, 19)[None]
    assert torch.equal(served(half, file.path, ids)[0], logits_of(tuned, ids))


@pytest.mark.parametrize("tied", [True, False])
def test_more_tokens_than_the_bases_are_served_and_the_whole_embedding_is_told(tmp_path: Path, tied: bool) -> None:
    base = write_language_model(tmp_path / "base", tie_word_embeddings=tied)
    tuned = write_fine_tune(base, tmp_path / "tuned", more_tokens=2)
    ours = open_base(str(base))
    made = extract(ours, open_tuned(str(tuned)), Selection(budget=Budget(fraction=1.0)))
    assert any("embed_tokens.weight" in warning and "stored whole" in warning for warning in made.warnings)
    file = deltafile.write(made, ours, tmp_path / "d.ken")
    ids = torch.tensor([[3, 9, len(AutoTokenizer.from_pretrained(tuned)) - 1, 12]])
    found, delta = served(base, file.path, ids)
    assert set(delta.dense) == {EMBEDDING}
    assert set(delta.head) == (set() if tied else {"lm_head.weight"})
    assert torch.equal(found, logits_of(tuned, ids))
