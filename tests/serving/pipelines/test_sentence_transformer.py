"""Embeddings are those of `SentenceTransformer.encode` on the fine-tune's own folder, and on the one `ken apply` wrote.

Folders are written by sentence-transformers itself, in the form of version 6, and rewritten in the old one.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM, BertForSequenceClassification

import ken_core
from ken_core import Budget, CheckpointError, Selection, deltafile, open_base, open_tuned
from ken_core.embedding import ACTIVATIONS
from ken_core.sentence_transformer import _OLD_POOLING
from serving.errors import InvalidInputError
from tests.tiny_architectures import TOKENIZERS, ArchitectureBase, FineTune, served
from tests.tiny_checkpoints import TEXTS, WORDS

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed: pip install 'ken-serve[demo]'"
)
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

SentenceTransformer = sentence_transformers.SentenceTransformer
WIDTH = 32
INPUTS = [*TEXTS, " ".join(WORDS), "Why NOT? 東京", "rain " * 40]
"""Of different lengths, in one batch; two are longer than the model takes."""
EVERYTHING = Selection(budget=Budget(fraction=1.0))
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

Write = Callable[..., Path]
Serve = Callable[[Path], FineTune]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ArchitectureBase:
    return ArchitectureBase("bert", tmp_path_factory.mktemp("embeddings"))


@pytest.fixture(scope="module")
def noisy(base: ArchitectureBase) -> Callable[[str], Path]:
    """``noisy(architecture)``: the plain folder of a fine-tune."""

    def write(architecture: str) -> Path:
        owner = base if architecture == "bert" else ArchitectureBase(architecture, base.folder / architecture)
        folder = owner.folder / "backbone"
        if not folder.exists():
            owner.folder.mkdir(exist_ok=True)
            owner.delta("backbone", "features")
        return folder

    return write


@pytest.fixture
def write(noisy: Callable[[str], Path], tmp_path: Path) -> Write:
    """``write(*modules, …)``: a folder that sentence-transformers saved of a fine-tune and modules after it."""
    numbers = itertools.count()

    def save(*then: nn.Module, architecture: str = "bert", longest: int | None = None, **told: Any) -> Path:
        first = modules.Transformer(str(noisy(architecture)), **({"max_seq_length": longest} if longest else {}))
        model = SentenceTransformer(modules=[first, *then], device="cpu", **told)
        folder = tmp_path / f"written-{next(numbers)}"
        model.save(str(folder), create_model_card=False)
        return folder

    return save


@pytest.fixture
def serve(base: ArchitectureBase, tmp_path: Path) -> Serve:
    """``serve(folder)``: the fine-tune's delta, written, read back, and ready to be asked."""
    numbers = itertools.count()

    def run(folder: Path) -> FineTune:
        delta = ken_core.extract(base.checkpoint, open_tuned(str(folder)), EVERYTHING)
        file = deltafile.write(delta, base.checkpoint, tmp_path / f"{next(numbers)}.ken")
        return served(base, file)

    return run


def encoded(folder: Path, texts: Sequence[str] = INPUTS, **options: Any) -> np.ndarray:
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(list(texts), show_progress_bar=False, **options)


def assert_same(task: FineTune, folder: Path, parameters: dict[str, Any] | None = None, **options: Any) -> None:
    """The served answer, that of the applied folder and that of the fine-tune's own are one."""
    expected = encoded(folder, **options)
    np.testing.assert_allclose(task.ask("sentence-embeddings", INPUTS, **(parameters or {})), expected, atol=1e-5)
    np.testing.assert_allclose(encoded(task.applied, **options), expected, atol=1e-5)


def rewrite(folder: Path, name: str, **changes: Any) -> Path:
    """Change keys of a JSON file; of those set to `...`, drop them."""
    path = folder / name
    plain = json.loads(path.read_text()) if path.exists() else {}
    plain = {key: value for key, value in (plain | changes).items() if value is not ...}
    path.write_text(json.dumps(plain))
    return folder


def in_the_old_form(folder: Path, longest: int | None = None) -> Path:
    """What version 2 to 5 would have written of a folder."""
    plain = json.loads((folder / "1_Pooling/config.json").read_text())
    mode = plain["pooling_mode"]
    named = [mode] if isinstance(mode, str) else mode
    old = {key: name in ["last" if m == "lasttoken" else m for m in named] for key, name in _OLD_POOLING.items()}
    told = {"word_embedding_dimension": plain["embedding_dimension"], **old, "include_prompt": plain["include_prompt"]}
    (folder / "1_Pooling/config.json").write_text(json.dumps(told))
    told = {"max_seq_length": longest, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(told))
    listed = json.loads((folder / "modules.json").read_text())
    for module in listed:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


# Pooling


@pytest.mark.parametrize("form", ["new", "old"])
@pytest.mark.parametrize("mode", [*MODES, ("cls", "mean"), ("max", "mean_sqrt_len_tokens", "lasttoken"), MODES])
def test_every_pooling_in_both_forms_of_its_file(mode: Any, form: str, write: Write, serve: Serve) -> None:
    folder = write(modules.Pooling(WIDTH, mode))
    if form == "old":
        in_the_old_form(folder)
    assert_same(serve(folder), folder)


@pytest.mark.parametrize("mode", [("mean", "cls"), ("mean", "mean"), ["lasttoken", "cls", "max"]])
def test_poolings_in_an_order_that_the_old_form_cannot_say(mode: Any, write: Write, serve: Serve) -> None:
    folder = write(modules.Pooling(WIDTH, mode), modules.Normalize())
    assert_same(serve(folder), folder)


@pytest.mark.parametrize("architecture", sorted(TOKENIZERS))
def test_every_tokenizer_and_architecture(architecture: str, write: Write, tmp_path: Path, noisy: Any) -> None:
    folder = write(
        modules.Pooling(WIDTH, ("weightedmean", "lasttoken")), modules.Normalize(), architecture=architecture
    )
    noisy(architecture)
    own = ArchitectureBase(architecture, tmp_path / "other")
    own.folder.mkdir()
    delta = ken_core.extract(own.checkpoint, open_tuned(str(folder)), EVERYTHING)
    assert_same(served(own, deltafile.write(delta, own.checkpoint, tmp_path / "d.ken")), folder)


def test_an_old_file_that_names_no_pooling_means_the_mean(write: Write, serve: Serve) -> None:
    folder = in_the_old_form(write(modules.Pooling(WIDTH, "cls")))
    rewrite(folder, "1_Pooling/config.json", pooling_mode_cls_token=False)
    assert_same(serve(folder), folder)


def test_module_folders_may_have_any_name_and_dropout_does_nothing(write: Write, serve: Serve) -> None:
    folder = write(modules.Pooling(WIDTH, "cls"), modules.Dropout(0.5), modules.Normalize())
    (folder / "1_Pooling").rename(folder / "how to pool")
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["path"] = "how to pool"
    (folder / "modules.json").write_text(json.dumps(listed))
    assert_same(serve(folder), folder)


def test_the_real_model_of_the_wheel_is_read_as_it_is(minilm: Path, tmp_path: Path) -> None:
    real = open_base(str(minilm))
    delta = ken_core.extract(real, open_tuned(str(minilm)))
    assert delta.embedding is not None
    assert (delta.embedding.pooling, delta.embedding.normalizes, delta.embedding.max_length) == (("mean",), True, 256)
    ken_core.apply(real, delta, tmp_path / "out")
    np.testing.assert_allclose(encoded(tmp_path / "out"), encoded(minilm), atol=1e-6)


# Dense


DENSE: dict[str, Callable[[], list[nn.Module]]] = {
    "one": lambda: [modules.Dense(WIDTH, 7)],
    "two": lambda: [modules.Dense(WIDTH, 48, activation_function=None), modules.Dense(48, WIDTH, bias=False)],
    "residual": lambda: [modules.Dense(WIDTH, WIDTH, use_residual=True)],
    "residual of another width": lambda: [modules.Dense(WIDTH, 9, use_residual=True)],
    "scaled before and after": lambda: [modules.Normalize(), modules.Dense(WIDTH, 5), modules.Normalize()],
}


@pytest.mark.parametrize("which", DENSE)
def test_dense_modules_are_served_and_written_back(which: str, write: Write, serve: Serve) -> None:
    torch.manual_seed(3)
    folder = write(modules.Pooling(WIDTH, "mean"), *DENSE[which]())
    task = serve(folder)
    assert_same(task, folder)
    assert_same(task, folder, {"normalize": True}, normalize_embeddings=True)


def test_every_activation(write: Write, serve: Serve) -> None:
    """One after the other in one model: none may be mistaken for another."""
    torch.manual_seed(4)
    for start in range(0, len(ACTIVATIONS), 7):
        names = ACTIVATIONS[start : start + 7]
        layers = [modules.Dense(WIDTH, WIDTH, activation_function=getattr(nn, name)()) for name in names]
        folder = write(modules.Pooling(WIDTH, "mean"), *layers)
        assert_same(serve(folder), folder)


def test_a_dense_behind_several_poolings_in_a_pickle_of_tensors(write: Write, serve: Serve) -> None:
    dense = modules.Dense(2 * WIDTH, 6, activation_function=nn.GELU())
    folder = write(modules.Pooling(WIDTH, ("mean", "max")), dense)
    (folder / "2_Dense/model.safetensors").unlink()
    torch.save(dense.state_dict(), folder / "2_Dense/pytorch_model.bin")
    task = serve(folder)
    assert_same(task, folder)
    with pytest.raises(InvalidInputError, match="pooling: the task's projection takes 64 numbers"):
        task.ask("sentence-embeddings", ["rain"], pooling="mean")


# Lengths, case, dimensions


@pytest.mark.parametrize("longest", [5, 12, 64, 500])
@pytest.mark.parametrize("form", ["new", "old"])
def test_the_length_limit(longest: int, form: str, write: Write, serve: Serve) -> None:
    """In the old form it is a key of its own, in the new one the tokenizer's; beyond the positions both are cut."""
    folder = write(modules.Pooling(WIDTH, "mean"), longest=min(longest, 64))
    if form == "old":
        in_the_old_form(folder, longest=longest)
        rewrite(folder, "tokenizer_config.json", model_max_length=30)
    task = serve(folder)
    if longest <= 64:
        assert_same(task, folder)
    assert task.spec.encoder.max_length == min(longest, 64)


@pytest.mark.parametrize("lower", [True, False])
def test_lower_casing_before_a_tokenizer_that_keeps_case(lower: bool, write: Write, serve: Serve) -> None:
    folder = write(modules.Pooling(WIDTH, "mean"))
    plain = json.loads((folder / "tokenizer.json").read_text())
    plain["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    in_the_old_form(folder)
    rewrite(folder, "sentence_bert_config.json", do_lower_case=lower)
    assert_same(serve(folder), folder)


def test_a_folders_own_dimensions_are_cut_after_scaling_and_a_requests_before(write: Write, serve: Serve) -> None:
    folder = write(modules.Pooling(WIDTH, "mean"), modules.Normalize(), truncate_dim=9)
    task = serve(folder)
    assert_same(task, folder)
    assert_same(task, folder, {"normalize": True}, normalize_embeddings=True)
    own = encoded(folder, truncate_dim=4, normalize_embeddings=True)
    np.testing.assert_allclose(task.ask("sentence-embeddings", INPUTS, dimensions=4), own, atol=1e-5)
    with pytest.raises(InvalidInputError, match="dimensions: found 10, but the model's vectors have 9"):
        task.ask("sentence-embeddings", INPUTS, dimensions=10)


# Prompts


PROMPTS = {"query": "where is the ", "document": "", "far": "how far is it to "}


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", ["cls", "mean", ("max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")])
def test_prompts_by_default_by_name_and_as_text(include: bool, mode: Any, write: Write, serve: Serve) -> None:
    pooling = modules.Pooling(WIDTH, mode, include_prompt=include)
    folder = write(pooling, prompts=PROMPTS, default_prompt_name="far")
    task = serve(folder)
    assert_same(task, folder)
    for options in ({"prompt_name": "query"}, {"prompt_name": "document"}, {"prompt": "the man and "}, {"prompt": ""}):
        assert_same(task, folder, options, **options)


def test_query_and_document_are_known_where_nothing_names_them(write: Write, serve: Serve) -> None:
    folder = write(modules.Pooling(WIDTH, "mean"))
    (folder / "config_sentence_transformers.json").unlink()
    task = serve(folder)
    assert_same(task, folder, {"prompt_name": "query"}, prompt_name="query")
    with pytest.raises(InvalidInputError, match="prompt_name: found 'title'; the task has 'document', 'query'"):
        task.ask("sentence-embeddings", ["rain"], prompt_name="title")


def test_a_prompt_and_the_name_of_one_and_one_that_leaves_nothing_of_a_text_are_refused(
    write: Write, serve: Serve
) -> None:
    task = serve(write(modules.Pooling(WIDTH, "max", include_prompt=False), prompts=PROMPTS))
    with pytest.raises(InvalidInputError, match="not both"):
        task.ask("sentence-embeddings", ["rain"], prompt="a", prompt_name="query")
    assert len(task.ask("sentence-embeddings", ["rain"], prompt="rain " * 100)[0]) == WIDTH
    with pytest.raises(InvalidInputError, match="prompt"):
        task.ask("sentence-embeddings", ["rain"], prompt="rain " * 1000)


# Which folders


def test_a_base_of_sentence_transformers_says_nothing_about_its_fine_tunes(
    write: Write, noisy: Callable[[str], Path], tmp_path: Path
) -> None:
    base = write(modules.Pooling(WIDTH, "cls"), modules.Normalize(), prompts=PROMPTS, default_prompt_name="far")
    opened, plain = open_base(str(base)), noisy("bert")
    delta = ken_core.extract(opened, open_tuned(str(plain)))
    assert delta.embedding is None
    ken_core.apply(opened, delta, tmp_path / "out")
    np.testing.assert_allclose(encoded(tmp_path / "out"), encoded(plain), atol=1e-6)


@pytest.mark.parametrize("trained_as", [BertForMaskedLM, BertForSequenceClassification])
def test_a_folder_that_still_names_the_class_it_was_trained_as_is_a_backbone(
    trained_as: Any, write: Write, serve: Serve
) -> None:
    folder = write(modules.Pooling(WIDTH, "mean"))
    rewrite(folder, "config.json", architectures=[trained_as.__name__])
    assert_same(serve(folder), folder)


def test_an_adapter_that_sentence_transformers_saved(base: ArchitectureBase, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    first = modules.Transformer(str(base.path))
    model = SentenceTransformer(modules=[first, modules.Pooling(WIDTH, "max"), modules.Dense(WIDTH, 4)], device="cpu")
    model.add_adapter(peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=3, target_modules=["query", "value"]))
    torch.manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save(str(tmp_path / "adapter"), create_model_card=False)
    delta = ken_core.import_peft(tmp_path / "adapter", base.checkpoint)
    assert delta.lowrank
    task = served(base, deltafile.write(delta, base.checkpoint, tmp_path / "d.ken"))
    assert_same(task, tmp_path / "adapter")


# Refusals


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another module": (
        lambda folder: rename_module(folder, 2, "sentence_transformers.models.LSTM"),
        "lists a LSTM; served after the Pooling are Dense and Normalize",
    ),
    "layer norm": (lambda folder: rename_module(folder, 2, "sentence_transformers.models.LayerNorm"), "LayerNorm"),
    "own code": (lambda folder: rename_module(folder, 2, "my_code.Head"), "'my_code.Head', whose own code"),
    "no pooling": (
        lambda folder: rename_module(folder, 1, "sentence_transformers.models.WeightedLayerPooling"),
        "WeightedLayerPooling",
    ),
    "a router": (lambda folder: rename_module(folder, 0, "sentence_transformers.models.Asym"), "Asym"),
    "a place outside": (lambda folder: move_module(folder, "../1_Pooling"), "expected a folder inside"),
    "no modules": (lambda folder: (folder / "modules.json").write_text("{}"), "is no list of modules"),
    "damaged": (lambda folder: (folder / "modules.json").write_text("["), "cannot be read"),
    "no list": (lambda folder: (folder / "modules.json").unlink(), "1_Pooling but no modules.json"),
    "no pooling file": (lambda folder: (folder / "1_Pooling/config.json").unlink(), "cannot be read"),
    "unknown pooling": (
        lambda folder: rewrite(folder, "1_Pooling/config.json", pooling_mode="median"),
        "pools by 'median'; served are lasttoken, cls, max",
    ),
    "our name for it": (
        lambda folder: rewrite(folder, "1_Pooling/config.json", pooling_mode="last"),
        "pools by 'last'",
    ),
    "unknown key": (lambda folder: rewrite(folder, "1_Pooling/config.json", power=2), "has the key 'power'"),
    "another kind of model": (
        lambda folder: rewrite(folder, "config_sentence_transformers.json", model_type="SparseEncoder"),
        "describes a 'SparseEncoder'",
    ),
    "another output": (
        lambda folder: rewrite(folder, "sentence_bert_config.json", module_output_name="sentence_embedding"),
        "sets module_output_name to 'sentence_embedding'; served is 'token_embeddings'",
    ),
    "a chat template": (
        lambda folder: rewrite(folder, "sentence_bert_config.json", modality_config={"message": {"method": "forward"}}),
        "sets modality_config",
    ),
    "arguments of the model": (
        lambda folder: rewrite(folder, "sentence_bert_config.json", model_args={"add_pooling_layer": True}),
        "sets model_args",
    ),
    "a limit for queries": (
        lambda folder: rewrite(folder, "sentence_bert_config.json", query_length=8),
        "sets query_length to 8",
    ),
    "no length": (lambda folder: rewrite(folder, "sentence_bert_config.json", max_seq_length=0), "max_length"),
    "no such prompt": (
        lambda folder: rewrite(folder, "config_sentence_transformers.json", default_prompt_name="title"),
        "'title' is not among the prompts",
    ),
    "a prompt that is no text": (
        lambda folder: rewrite(folder, "config_sentence_transformers.json", prompts={"a": 1}),
        "prompts.a",
    ),
    "foreign activation": (
        lambda folder: rewrite(folder, "2_Dense/config.json", activation_function="os.system"),
        "has the activation 'os.system'; served are torch.nn's Identity",
    ),
    "activation with a name like another": (
        lambda folder: rewrite(folder, "2_Dense/config.json", activation_function="my_code.Tanh"),
        "has the activation 'my_code.Tanh'",
    ),
    "activation with weights": (
        lambda folder: rewrite(folder, "2_Dense/config.json", activation_function="torch.nn.modules.activation.PReLU"),
        "PReLU",
    ),
    "dense of tokens": (
        lambda folder: rewrite(folder, "2_Dense/config.json", module_input_name="token_embeddings"),
        "sets module_input_name to 'token_embeddings'",
    ),
    "dense without width": (
        lambda folder: rewrite(folder, "2_Dense/config.json", in_features=...),
        "lacks 'in_features'",
    ),
    "dense of another width": (
        lambda folder: rewrite(folder, "2_Dense/config.json", in_features=31),
        r"holds weights .* its config asks for",
    ),
    "dense without weights": (lambda folder: (folder / "2_Dense/model.safetensors").unlink(), "cannot be loaded"),
    "dense of damaged weights": (
        lambda folder: (folder / "2_Dense/model.safetensors").write_bytes(b"\x08"),
        "cannot be loaded",
    ),
    "pooled to another width": (
        lambda folder: rewrite(folder, "1_Pooling/config.json", pooling_mode=["mean", "max"]),
        "takes 32 numbers; pooling gives 64",
    ),
}


def rename_module(folder: Path, i: int, reference: str) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed[i]["type"] = reference
    (folder / "modules.json").write_text(json.dumps(listed))


def move_module(folder: Path, place: str) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["path"] = place
    (folder / "modules.json").write_text(json.dumps(listed))


@pytest.fixture(scope="module")
def with_dense(noisy: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    first = modules.Transformer(str(noisy("bert")))
    model = SentenceTransformer(modules=[first, modules.Pooling(WIDTH), modules.Dense(WIDTH, 6)], device="cpu")
    folder = tmp_path_factory.mktemp("dense") / "folder"
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_served_is_refused_by_name(
    what: str, with_dense: Path, base: ArchitectureBase, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(with_dense, tmp_path / "copy"))
    change, said = REFUSED[what]
    change(folder)
    with pytest.raises(CheckpointError, match=said):
        ken_core.extract(base.checkpoint, open_tuned(str(folder)))


def test_a_pickle_of_a_dense_that_holds_more_than_tensors_is_never_run(
    with_dense: Path, base: ArchitectureBase, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(with_dense, tmp_path / "copy"))
    (folder / "2_Dense/model.safetensors").unlink()
    torch.save({"linear.weight": Path("/tmp")}, folder / "2_Dense/pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        ken_core.extract(base.checkpoint, open_tuned(str(folder)))


def test_a_damaged_dense_that_holds_no_numbers_is_refused(
    with_dense: Path, base: ArchitectureBase, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(with_dense, tmp_path / "copy"))
    weights = load_file(folder / "2_Dense/model.safetensors")
    weights["linear.bias"][0] = torch.nan
    save_file(weights, folder / "2_Dense/model.safetensors")
    with pytest.raises(CheckpointError, match="NaN"):
        ken_core.extract(base.checkpoint, open_tuned(str(folder)))
