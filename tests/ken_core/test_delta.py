from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

from ken_core.bits import as_bits, same_bits
from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.delta import Delta, apply, merge
from ken_core.errors import BaseMismatchError, CheckpointError, ConfigMismatchError
from ken_core.extraction import extract
from ken_core.fingerprint import fingerprint
from ken_core.progress import Stage
from ken_core.resident import ResidentModel
from ken_core.selection import Budget, Selection

EVERYTHING = Selection(budget=Budget(fraction=1.0))
SELECTIONS = [
    Selection(),
    EVERYTHING,
    Selection("ken", Budget("row", 0.25)),
    Selection("ken-shift", Budget("row", k=5)),
    Selection("random", Budget("global", 0.5), seed=3),
]


@pytest.fixture
def assert_served_as_applied(served, answers, tmp_path):
    """Bit-equal logits of the resident base with a delta and of the folder `apply` writes."""

    def check(base: Path, delta: Delta, batch: dict[str, torch.Tensor]) -> None:
        out = tmp_path / f"applied-{delta.selection.method}-{delta.selection.budget.fraction}"
        apply(open_base(str(base)), delta, out)
        assert same_bits(served(base, delta, batch), answers(out, batch))

    return check


def edited_copy(folder: Path, out: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of a checkpoint folder with tensors replaced, or removed where None."""
    shutil.copytree(folder, out)
    stored = load_file(out / "model.safetensors") | tensors
    kept = {n: t for n, t in stored.items() if t is not None}
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    return out


def tiny_gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=96, n_embd=16, n_layer=2, n_head=2, n_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=1
    )


# extract


def test_the_default_keeps_a_tenth_of_all_changed_elements(base, tuned):
    delta = extract(base, tuned)
    assert delta.backbone_parameters == sum(t.numel() for t in base.backbone_tensors.values())
    assert delta.candidates == delta.backbone_parameters  # every tensor moved
    selected = sum(s.selected for s in delta.sparse.values())
    assert selected <= int(0.1 * delta.candidates + 0.5)
    assert delta.stored > 0.09 * delta.candidates


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: s.method)
def test_stored_values_are_the_fine_tunes_at_the_masks_positions(base, tuned, selection):
    delta = extract(base, tuned, selection)
    assert delta.selection == selection
    for name, entry in delta.sparse.items():
        assert np.array_equal(as_bits(tuned.backbone_tensors[name])[entry.mask], entry.values)
        assert entry.shape == base.backbone_tensors[name].shape
        assert entry.dtype == base.backbone_tensors[name].dtype


def test_selected_elements_whose_bits_equal_the_bases_are_counted_but_not_stored(base, tiny_tuned, tmp_path):
    name = "encoder.layer.1.output.dense.weight"
    half = open_tuned(str(tiny_tuned["topics"])).backbone_tensors[name].clone()
    half[:16] = base.backbone_tensors[name][:16]
    folder = edited_copy(tiny_tuned["topics"], tmp_path / "half", **{f"bert.{name}": half})
    entry = extract(base, open_tuned(str(folder)), EVERYTHING).sparse[name]
    assert entry.selected == half.numel()
    changed = int((as_bits(half) != as_bits(base.backbone_tensors[name])).sum())
    assert entry.values.size == int(entry.mask.sum()) == changed <= half.numel() / 2


def test_a_change_of_sign_of_zero_is_a_change(base, tmp_path, tiny_base):
    bias = base.backbone_tensors["embeddings.LayerNorm.bias"]
    assert not bias.any()
    folder = edited_copy(tiny_base, tmp_path / "signed", **{"embeddings.LayerNorm.bias": -bias})
    delta = extract(base, open_tuned(str(folder)), EVERYTHING)
    assert set(delta.sparse) == {"embeddings.LayerNorm.bias"}
    assert delta.stored == bias.numel()


def test_a_fine_tune_that_changed_nothing_is_an_empty_delta(base, tiny_base, tmp_path, batch, answers):
    delta = extract(base, open_tuned(str(tiny_base)), EVERYTHING)
    assert (delta.stored, delta.candidates, delta.dense, delta.head) == (0, 0, {}, {})
    apply(base, delta, tmp_path / "out")
    assert same_bits(answers(tmp_path / "out", batch), answers(base, batch))


def test_unchanged_tensors_do_not_compete_for_the_budget(base, tiny_base, tmp_path):
    name = "encoder.layer.0.output.dense.weight"
    moved = base.backbone_tensors[name] + 1.0
    delta = extract(base, open_tuned(str(edited_copy(tiny_base, tmp_path / "one", **{name: moved}))))
    assert delta.candidates == moved.numel()
    assert delta.stored == int(0.1 * moved.numel() + 0.5)


def test_a_tensor_the_fine_tune_lacks_is_unchanged(base, tiny_tuned, tmp_path):
    lacking = {"bert.pooler.dense.weight": None, "bert.pooler.dense.bias": None}
    delta = extract(base, open_tuned(str(edited_copy(tiny_tuned["topics"], tmp_path / "less", **lacking))), EVERYTHING)
    assert delta.sparse
    assert not [n for n in (*delta.sparse, *delta.dense) if n.startswith("pooler")]


def test_the_head_labels_and_kind_of_the_fine_tune_are_carried(base, tuned):
    delta = extract(base, tuned)
    assert delta.kind == "text-classification"
    assert delta.architecture == "BertForSequenceClassification"
    assert list(delta.config["id2label"].values()) == ["place", "person", "number"]
    assert all(same_bits(delta.head[n], t) for n, t in tuned.head_tensors.items())


def test_progress_is_told_every_changed_tensor(base, tuned):
    told: list[Stage] = []
    extract(base, tuned, progress=told.append)
    for what in ("comparing", "selecting"):
        assert [s.name for s in told if s.what == what] == list(base.backbone_tensors)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["bert.encoder.layer.0.output.dense.weight", "classifier.weight"])
def test_nan_and_infinity_are_refused_naming_the_tensor(base, tiny_tuned, tmp_path, name, bad):
    tensor = load_file(tiny_tuned["topics"] / "model.safetensors")[name]
    tensor[1, 2] = bad
    folder = edited_copy(tiny_tuned["topics"], tmp_path / "bad", **{name: tensor})
    with pytest.raises(CheckpointError, match=name.removeprefix("bert.")):
        extract(base, open_tuned(str(folder)))


def test_a_backbone_that_computes_something_else_is_refused(base, tiny_tuned, tmp_path):
    folder = Path(shutil.copytree(tiny_tuned["topics"], tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 8}))
    with pytest.raises(ConfigMismatchError, match="num_attention_heads is 4 in the base and 8"):
        extract(base, open_tuned(str(folder)))


def test_another_architecture_is_refused(base, save_random):
    with pytest.raises(ConfigMismatchError, match=r"'bert'.*'gpt2'"):
        extract(base, open_tuned(str(save_random(GPT2Model, tiny_gpt2()))))


def test_a_fine_tune_whose_head_is_not_in_its_files_is_refused(base, tiny_tuned, tmp_path):
    """transformers would fill it with random numbers, others at every extraction."""
    lacking = {"classifier.weight": None, "classifier.bias": None}
    folder = edited_copy(tiny_tuned["topics"], tmp_path / "headless", **lacking)
    with pytest.raises(CheckpointError, match=r"classifier\.(weight|bias)"):
        extract(base, open_tuned(str(folder)))


# dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_of_other_dtypes_are_served_as_they_are_applied(
    save_random, save_noisy, batch, dtype, served, answers, assert_served_as_applied
):
    folder = save_random(GPT2Model, tiny_gpt2(), dtype=dtype)
    tuned = open_tuned(str(save_noisy(GPT2ForSequenceClassification, folder, num_labels=3)))
    for selection in (Selection(), EVERYTHING):
        delta = extract(open_base(str(folder)), tuned, selection)
        assert {s.dtype for s in delta.sparse.values()} == {dtype}
        assert_served_as_applied(folder, delta, batch)
    assert same_bits(served(folder, delta, batch), answers(tuned, batch))


def test_an_exact_widening_needs_no_permission(save_random, save_noisy):
    folder = save_random(GPT2Model, tiny_gpt2(), dtype=torch.float32)
    tuned = open_tuned(str(save_noisy(GPT2ForSequenceClassification, folder, dtype=torch.bfloat16)))
    assert {t.dtype for t in tuned.backbone_tensors.values()} == {torch.bfloat16}
    delta = extract(open_base(str(folder)), tuned, EVERYTHING)
    assert {s.dtype for s in delta.sparse.values()} == {torch.float32}
    assert {t.dtype for t in delta.head.values()} == {torch.float32}


@pytest.fixture(scope="module")
def narrow(save_random, save_noisy) -> tuple[Path, Path]:
    """A base in bfloat16 and its fine-tune in float32."""
    base = save_random(GPT2Model, tiny_gpt2(), dtype=torch.bfloat16)
    return base, save_noisy(GPT2ForSequenceClassification, base, dtype=torch.float32, num_labels=3)


def test_an_inexact_narrowing_is_refused_unless_allowed(narrow):
    base, tuned = (open_base(str(narrow[0])), open_tuned(str(narrow[1])))
    with pytest.raises(CheckpointError, match=r"float32 .* lose precision .* bfloat16; allow that with --cast"):
        extract(base, tuned)
    delta = extract(base, tuned, EVERYTHING, cast=True)
    assert {s.dtype for s in delta.sparse.values()} == {torch.bfloat16}
    merged = merge(base, delta)
    assert all(same_bits(merged[n], t.to(torch.bfloat16)) for n, t in tuned.backbone_tensors.items())


def test_an_exact_narrowing_needs_no_permission(save_random, save_noisy, tmp_path):
    folder = save_random(GPT2Model, tiny_gpt2(), dtype=torch.bfloat16)
    narrow = save_noisy(GPT2ForSequenceClassification, folder, dtype=torch.bfloat16)
    wide = save_noisy(GPT2ForSequenceClassification, narrow, dtype=torch.float32, scale=0.0)
    tuned = open_tuned(str(wide))
    assert {t.dtype for t in tuned.backbone_tensors.values()} == {torch.float32}
    assert extract(open_base(str(folder)), tuned).stored


def test_a_narrowed_fine_tune_is_served_as_it_is_applied(narrow, batch, assert_served_as_applied):
    delta = extract(open_base(str(narrow[0])), open_tuned(str(narrow[1])), cast=True)
    assert_served_as_applied(narrow[0], delta, batch)


# merge and apply


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: s.method)
def test_merge_gives_the_fine_tunes_bits_where_selected_and_the_bases_elsewhere(base, tuned, selection):
    delta = extract(base, tuned, selection)
    merged = merge(base, delta)
    assert set(merged) == set(base.backbone_tensors)
    for name, tensor in merged.items():
        ours, theirs = as_bits(base.backbone_tensors[name]), as_bits(tuned.backbone_tensors[name])
        mask = delta.sparse[name].mask if name in delta.sparse else np.zeros(ours.size, np.bool_)
        assert np.array_equal(as_bits(tensor), np.where(mask, theirs, ours))
        assert tensor.shape == base.backbone_tensors[name].shape


def test_merge_writes_nothing_into_the_base(base, tuned):
    before = fingerprint(base.backbone_tensors)
    merge(base, extract(base, tuned, EVERYTHING))
    assert fingerprint(base.backbone_tensors) == before


def test_apply_writes_a_complete_folder(base, tuned, tmp_path, left_in_tmp_path, tiny_base):
    apply(base, extract(base, tuned), tmp_path / "out")
    assert left_in_tmp_path() == ["out"]
    found = {p.name for p in (tmp_path / "out").iterdir()}
    assert found == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny_base / "tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "place", "1": "person", "2": "number"}
    assert config["architectures"] == ["BertForSequenceClassification"]


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: s.method)
def test_the_applied_folder_answers_bit_for_bit_as_the_resident_model(
    base, tuned, tiny_base, batch, selection, assert_served_as_applied
):
    assert_served_as_applied(tiny_base, extract(base, tuned, selection), batch)


def test_the_applied_folder_opens_as_what_transformers_users_call_it(base, tuned, tmp_path, batch, answers):
    apply(base, extract(base, tuned), tmp_path / "out")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert opened.config.id2label == {0: "place", 1: "person", 2: "number"}
    with torch.no_grad():
        assert same_bits(copy.deepcopy(opened)(**batch).logits, answers(tmp_path / "out", batch))


def test_the_full_budget_reproduces_the_fine_tunes_logits_bit_for_bit(
    base, tuned, tiny_base, batch, served, answers, assert_served_as_applied
):
    delta = extract(base, tuned, EVERYTHING)
    expected = answers(tuned, batch)
    assert not torch.equal(expected[0], expected[1])
    assert same_bits(served(tiny_base, delta, batch), expected)
    assert_served_as_applied(tiny_base, delta, batch)


@pytest.mark.parametrize(
    "model_class",
    [BertForTokenClassification, BertForQuestionAnswering, BertForMaskedLM, BertForPreTraining, BertModel],
)
class TestOtherKindsOfHead:
    def test_are_served_as_the_fine_tune_answers(
        self, base, tiny_base, save_noisy, batch, model_class, served, answers
    ):
        tuned = open_tuned(str(save_noisy(model_class, tiny_base)))
        assert same_bits(served(tiny_base, extract(base, tuned, EVERYTHING), batch), answers(tuned, batch))

    def test_are_served_as_they_are_applied(
        self, base, tiny_base, save_noisy, batch, model_class, assert_served_as_applied
    ):
        tuned = open_tuned(str(save_noisy(model_class, tiny_base)))
        assert_served_as_applied(tiny_base, extract(base, tuned), batch)


def test_a_head_tied_within_itself_is_carried_once(base, tiny_base, save_noisy):
    delta = extract(base, open_tuned(str(save_noisy(BertForMaskedLM, tiny_base))))
    pointers = [t.data_ptr() for t in delta.head.values()]
    assert len(set(pointers)) == len(pointers)


def test_a_tied_language_model_is_served_as_it_is_applied(
    save_random, save_noisy, batch, served, answers, assert_served_as_applied
):
    folder = save_random(GPT2Model, tiny_gpt2())
    tuned = open_tuned(str(save_noisy(GPT2LMHeadModel, folder)))
    delta = extract(open_base(str(folder)), tuned, EVERYTHING)
    assert delta.head == {}
    assert same_bits(served(folder, delta, batch), answers(tuned, batch))
    assert_served_as_applied(folder, delta, batch)


def test_a_pooler_the_base_lacks_comes_whole_with_the_fine_tune(
    save_noisy, save_random, batch, served, answers, assert_served_as_applied
):
    config = BertConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, initializer_range=0.2,
    )  # fmt: skip
    folder = save_random(BertForMaskedLM, config)
    tuned = open_tuned(str(save_noisy(BertForSequenceClassification, folder, num_labels=3)))
    delta = extract(open_base(str(folder)), tuned, EVERYTHING)
    assert set(delta.dense) == {"pooler.dense.bias", "pooler.dense.weight"}
    assert same_bits(served(folder, delta, batch), answers(tuned, batch))
    assert_served_as_applied(folder, delta, batch)


@pytest.mark.parametrize("rows", [105, 91])
@pytest.mark.parametrize("model_class", [GPT2LMHeadModel, GPT2ForSequenceClassification])
def test_a_resized_embedding_is_carried_whole(
    save_random, save_noisy, batch, model_class, rows, served, answers, assert_served_as_applied
):
    folder = save_random(GPT2Model, tiny_gpt2())
    tuned = open_tuned(str(save_noisy(model_class, folder, resize=rows)))
    delta = extract(open_base(str(folder)), tuned, EVERYTHING)
    assert {n: t.shape for n, t in delta.dense.items()} == {"wte.weight": (rows, 16)}
    assert "wte.weight" not in delta.sparse
    assert same_bits(served(folder, delta, batch), answers(tuned, batch))
    assert_served_as_applied(folder, delta, batch)


def test_added_tokens_are_understood_end_to_end(tiny_base, base, save_noisy, tmp_path, served, answers):
    """The new embedding row and the new tokenizer both arrive."""
    folder = save_noisy(BertForSequenceClassification, tiny_base, resize=base.config.vocab_size + 1, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens(["kubernetes"])
    tokenizer.save_pretrained(folder)
    tuned = open_tuned(str(folder))
    delta = extract(base, tuned, EVERYTHING)
    assert set(delta.files) == {"tokenizer.json", "tokenizer_config.json"}
    apply(base, delta, tmp_path / "out")
    inputs = dict(AutoTokenizer.from_pretrained(tmp_path / "out")(["what is kubernetes"], return_tensors="pt"))
    assert inputs["input_ids"].max() == base.config.vocab_size
    assert same_bits(answers(tmp_path / "out", inputs), answers(tuned, inputs))
    assert same_bits(served(tiny_base, delta, inputs), answers(tuned, inputs))


def test_an_empty_folder_is_a_place_to_apply_to_and_parents_are_made(base, tuned, tmp_path):
    (tmp_path / "empty").mkdir()
    delta = extract(base, tuned)
    for out in (tmp_path / "empty", tmp_path / "new" / "deep" / "out"):
        apply(base, delta, out)
        assert (out / "model.safetensors").is_file()


def test_apply_refuses_a_folder_with_anything_in_it_and_a_file(base, tuned, tmp_path):
    delta = extract(base, tuned)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".precious").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(FileExistsError, match=out.name):
            apply(base, delta, out)
    assert [p.name for p in (tmp_path / "full").iterdir()] == [".precious"]
    assert (tmp_path / "file").read_text() == "precious"


def test_a_failed_apply_leaves_nothing_behind(base, tuned, tmp_path, left_in_tmp_path):
    delta = extract(base, tuned)
    unknown = dataclasses.replace(delta, architecture="NoSuchForSequenceClassification")
    with pytest.raises(CheckpointError, match="NoSuchForSequenceClassification"):
        apply(base, unknown, tmp_path / "out")
    clashing = dataclasses.replace(delta, files={"tokenizer.json": "not bytes"})
    with pytest.raises(TypeError):
        apply(base, clashing, tmp_path / "out")
    assert left_in_tmp_path() == []


@pytest.fixture(scope="module")
def other_base(tiny_base, tmp_path_factory) -> Checkpoint:
    """The tiny base with one bit of one weight changed."""
    name = "embeddings.LayerNorm.weight"
    changed = load_file(tiny_base / "model.safetensors")[name]
    as_bits(changed)[7] ^= 1
    return open_base(str(edited_copy(tiny_base, tmp_path_factory.mktemp("other") / "base", **{name: changed})))


USES = {
    "merge": lambda base, delta, out: merge(base, delta),
    "apply": apply,
    "attach": lambda base, delta, out: ResidentModel(open_base(str(base.folder))).attach(delta),
}


@pytest.mark.parametrize("use", USES)
def test_another_base_is_refused_naming_both_fingerprints(base, tuned, other_base, tmp_path, left_in_tmp_path, use):
    delta = extract(base, tuned)
    with pytest.raises(BaseMismatchError) as refusal:
        USES[use](other_base, delta, tmp_path / "out")
    assert delta.base_fingerprint in str(refusal.value)
    assert fingerprint(other_base.backbone_tensors).digest in str(refusal.value)
    assert left_in_tmp_path() == []


# tokenizer files and pooling


def test_a_tokenizer_of_the_same_content_is_not_carried(base, tiny_tuned, tmp_path):
    folder = Path(shutil.copytree(tiny_tuned["topics"], tmp_path / "formatted"))
    plain = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(plain, indent=7))
    assert (folder / "tokenizer.json").read_bytes() != base.tokenizer_file("tokenizer.json")
    assert extract(base, open_tuned(str(folder))).files == {}


def test_a_fine_tune_without_tokenizer_uses_the_bases(base, tiny_tuned, tmp_path):
    folder = Path(shutil.copytree(tiny_tuned["topics"], tmp_path / "without"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert extract(base, open_tuned(str(folder))).files == {}


def test_a_tokenizer_without_its_vocabulary_is_refused(base, tiny_tuned, tmp_path):
    folder = Path(shutil.copytree(tiny_tuned["topics"], tmp_path / "without"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer of .* cannot be used.* remove its files"):
        extract(base, open_tuned(str(folder)))


def test_a_tokenizer_of_other_content_is_carried_and_applied(base, tiny_tuned, tmp_path):
    folder = Path(shutil.copytree(tiny_tuned["topics"], tmp_path / "other"))
    plain = json.loads((folder / "tokenizer.json").read_text())
    plain["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    delta = extract(base, open_tuned(str(folder)))
    assert json.loads(delta.files["tokenizer.json"])["normalizer"]["lowercase"] is False
    apply(base, delta, tmp_path / "out")
    for text in ("Rain", "what IS it"):
        ids = AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"]
        assert ids == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        assert ids != AutoTokenizer.from_pretrained(base.folder)(text)["input_ids"]


def test_a_damaged_tokenizer_is_refused(base, tiny_tuned, tmp_path):
    folder = Path(shutil.copytree(tiny_tuned["topics"], tmp_path / "damaged"))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        extract(base, open_tuned(str(folder)))


def test_nbytes_is_what_the_arrays_hold(base, tuned):
    delta = extract(base, tuned)
    assert delta.nbytes == (
        sum(t.numel() * t.element_size() for t in delta.head.values())
        + sum(-(-e.mask.size // 8) + e.values.size * 4 for e in delta.sparse.values())
    )
