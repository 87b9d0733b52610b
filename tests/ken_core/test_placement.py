"""Weights in files under names that the model does not know: the wrapper is undone exactly, or the file is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from ken_core.bits import same_bits
from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.errors import CheckpointError
from ken_core.extraction import extract
from ken_core.selection import Budget, Selection

EVERYTHING = Selection(budget=Budget(fraction=1.0))
Tensors = dict[str, torch.Tensor]
Rewrite = Callable[[Tensors], Tensors]
Write = Callable[..., Path]
QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture
def tuned_folder(tiny_tuned) -> Path:
    return tiny_tuned["topics"]


@pytest.fixture
def write(tmp_path) -> Write:
    """``write(folder, tensors)``: a copy of a folder with these tensors in place of its own."""

    def copied(folder: Path, tensors: Tensors, pickled: bool = False) -> Path:
        out = tmp_path / "rewritten"
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
        if pickled:
            torch.save(tensors, out / "pytorch_model.bin")
        else:
            save_file({n: t.contiguous() for n, t in tensors.items()}, out / "model.safetensors", {"format": "pt"})
        return out

    return copied


def stored(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def model_of(folder: Path) -> BertForSequenceClassification:
    return BertForSequenceClassification.from_pretrained(folder)


def queries(model: nn.Module) -> list[nn.Linear]:
    return [module for name, module in model.named_modules() if name.endswith("self.query")]


def same_tensors(one: Checkpoint, other: Checkpoint) -> bool:
    ours = {**one.backbone_tensors, **one.head_tensors}
    theirs = {**other.backbone_tensors, **other.head_tensors}
    return ours.keys() == theirs.keys() and all(same_bits(t, theirs[n]) for n, t in ours.items())


# wrappers that are undone


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model)


def compiled_by_layer(model: nn.Module) -> nn.Module:
    layers = model.bert.encoder.layer
    for i, layer in enumerate(layers):
        layers[i] = torch.compile(layer)
    return model


def data_parallel(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)


def compiled_and_parallel(model: nn.Module) -> nn.Module:
    return nn.DataParallel(torch.compile(model))


def checkpointed(model: nn.Module) -> nn.Module:
    model.bert.encoder.layer[1] = checkpoint_wrapper(model.bert.encoder.layer[1])
    return model


class Sharded(nn.Module):
    """Names as FullyShardedDataParallel gives them; FSDP itself would need several processes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = model


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickle"])
@pytest.mark.parametrize(
    "wrap", [compiled, compiled_by_layer, data_parallel, compiled_and_parallel, checkpointed, Sharded]
)
def test_names_of_a_wrapped_model_are_those_of_the_model(tuned_folder, write, wrap, pickled):
    wrapped = {n: t.detach() for n, t in nn.Module.state_dict(wrap(model_of(tuned_folder))).items()}
    if wrap is checkpointed:  # this wrapper hides its own part of a name when it is saved as a whole model
        wrapped = {n.replace("layer.1.", "layer.1._checkpoint_wrapped_module."): t for n, t in wrapped.items()}
    assert not wrapped.keys() <= stored(tuned_folder).keys()
    assert same_tensors(open_tuned(str(write(tuned_folder, wrapped, pickled))), open_tuned(str(tuned_folder)))


def test_a_wrapped_base_is_the_base(tiny_base, write):
    wrapped = {f"module._orig_mod.{n}": t for n, t in stored(tiny_base).items()}
    opened = open_base(str(write(tiny_base, wrapped)))
    assert same_tensors(opened, open_base(str(tiny_base)))


def test_a_wrapped_models_tensors_lie_on_the_mapped_file(tiny_base, write):
    folder = write(tiny_base, {f"_orig_mod.{n}": t for n, t in stored(tiny_base).items()})
    opened = open_base(str(folder))
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(folder / "model.safetensors"))]
    tensor = opened.backbone_tensors["embeddings.word_embeddings.weight"]
    assert any(int(low, 16) <= tensor.data_ptr() < int(high, 16) for low, high in spans)


def test_a_pruned_model_is_served_with_its_masks_applied(tiny_base, tuned_folder, write, batch, answers, served):
    model = model_of(tuned_folder).eval()
    for query in queries(model):
        prune.l1_unstructured(query, "weight", amount=0.5)
    folder = write(tuned_folder, dict(model.state_dict()))
    assert f"bert.{QUERY}.weight_mask" in stored(folder)
    delta = extract(open_base(str(tiny_base)), open_tuned(str(folder)), EVERYTHING)
    with torch.no_grad():
        expected = model(**batch).logits
    assert torch.equal(served(tiny_base, delta, batch), expected)
    assert not torch.equal(expected, answers(tuned_folder, batch))


# wrappers that are refused


def with_adapter(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"]))
    return wrapped.base_model.model


def whole_peft_model(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules=["query"]))


def weight_normed(model: nn.Module) -> nn.Module:
    for query in queries(model):
        parametrizations.weight_norm(query)
    return model


def spectrally_normed(model: nn.Module) -> nn.Module:
    for query in queries(model):
        parametrizations.spectral_norm(query)
    return model


def normed_the_old_way(model: nn.Module) -> nn.Module:
    for query in queries(model):
        nn.utils.spectral_norm(query)
    return model


class Lightning(nn.Module):
    """A module of the user's own around the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = model


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (with_adapter, "lora_.*merge it with peft|original_module|base_layer.*merge it with peft"),
        (whole_peft_model, "base_model.*merge it with peft"),
        (weight_normed, "original0.*remove_parametrizations"),
        (spectrally_normed, "remove_parametrizations"),
        (normed_the_old_way, "remove_parametrizations"),
        (Lightning, "'network.*save_pretrained"),
    ],
)
def test_a_wrapper_that_cannot_be_undone_exactly_is_refused_with_what_to_do(tuned_folder, write, wrap, named):
    folder = write(tuned_folder, {n: t.detach() for n, t in wrap(model_of(tuned_folder)).state_dict().items()})
    with pytest.raises(CheckpointError, match=named):
        open_tuned(str(folder))


def renamed(old: str, new: str) -> Rewrite:
    return lambda tensors: {n.replace(old, new): t for n, t in tensors.items()}


def beside(name: str, shape: tuple[int, ...]) -> Rewrite:
    return lambda tensors: {**tensors, name: torch.ones(shape)}


def doubled(tensors: Tensors) -> Tensors:
    return {**tensors, f"{QUERY}.weight": tensors[f"bert.{QUERY}.weight"] + 1}


@pytest.mark.parametrize(
    ("rewrite", "named"),
    [
        (renamed("bert.", "roberta."), "none of the weights"),
        (renamed("layer.1.", "layers.1."), r"lacks 'bert\.encoder\.layer\.1.* and holds 'bert\.encoder\.layers\.1"),
        (renamed("classifier", "score"), r"lacks 'classifier\.bias' and holds 'score\."),
        (renamed("query.weight", "query.qweight"), "holds .*qweight.*dequantise"),
        (beside(f"bert.{QUERY}.lora_A", (4, 32)), "lora_A.*merge it with peft"),
        (beside(f"bert.{QUERY}.SCB", (32,)), "SCB.*dequantise"),
        (beside(f"bert.{QUERY}.weight_mask", (32, 32)), "weight_mask.*prune.remove"),
        (beside("classifier.modules_to_save.default.weight", (3, 32)), "modules_to_save.*merge it with peft"),
        (doubled, "which are one weight"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_could_not_be_named_are_refused(tuned_folder, write, rewrite, named):
    with pytest.raises(CheckpointError, match=named):
        open_tuned(str(write(tuned_folder, rewrite(stored(tuned_folder)))))


@pytest.mark.parametrize(
    ("rewrite", "named"),
    [
        (renamed("layer.1.", "layers.1."), r"lacks 'encoder\.layer\.1.* and holds 'encoder\.layers\.1"),
        (renamed("query.weight", "query.base_layer.weight"), "base_layer.*merge it with peft"),
        (beside(f"{QUERY}.lora_A", (4, 32)), "lora_A"),
        (lambda tensors: {n: t for n, t in tensors.items() if QUERY not in n}, "a base holds all its weights"),
    ],
)
def test_a_base_is_refused_in_the_same_way(tiny_base, write, rewrite, named):
    with pytest.raises(CheckpointError, match=named):
        open_base(str(write(tiny_base, rewrite(stored(tiny_base)))))


@pytest.mark.parametrize("opener", [open_base, open_tuned])
@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ("config.json", {"transformers_weights": "other.safetensors"}, "other.safetensors"),
        ("adapter_config.json", {"peft_type": "LORA"}, "import-peft"),
    ],
)
def test_what_would_make_other_weights_of_the_folders_own_is_refused(
    tuned_folder, tmp_path, opener, file, content, named
):
    folder = Path(shutil.copytree(tuned_folder, tmp_path / "copy"))
    known = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(known | content))
    with pytest.raises(CheckpointError, match=named):
        opener(str(folder))


def test_a_class_of_another_architecture_than_the_config_is_refused(tuned_folder, tmp_path):
    folder = Path(shutil.copytree(tuned_folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["RobertaForSequenceClassification"]}))
    with pytest.raises(CheckpointError, match="'bert', but the class it names, RobertaForSequenceClassification"):
        open_tuned(str(folder))


# files that lack weights, or hold more than the model takes, and are none the worse for it


def test_a_base_may_hold_a_head_and_lack_the_pooler(tiny_base, save_noisy):
    opened = open_base(str(save_noisy(BertForMaskedLM, tiny_base)))
    assert opened.lacking == []


def test_weights_that_are_only_missing_were_frozen_and_the_bases_are_served(
    tiny_base, base, tuned_folder, write, batch, served
):
    frozen = {n: t for n, t in stored(tuned_folder).items() if not n.startswith("bert.encoder.layer.0.")}
    opened = open_tuned(str(write(tuned_folder, frozen)))
    delta = extract(base, opened, EVERYTHING)
    (warning,) = delta.warnings
    assert "lacks 16 of the base's tensors" in warning
    model = model_of(tuned_folder).eval()
    ours = BertModel.from_pretrained(tiny_base).encoder.layer[0].state_dict()
    model.bert.encoder.layer[0].load_state_dict(ours)
    with torch.no_grad():
        assert torch.equal(served(tiny_base, delta, batch), model(**batch).logits)


def test_a_weight_that_neither_the_fine_tune_nor_the_base_holds_is_refused(tiny_base, tuned_folder, tmp_path, write):
    without = {n: t for n, t in stored(tuned_folder).items() if ".pooler." not in n}
    bare = Path(shutil.copytree(tiny_base, tmp_path / "bare"))
    save_file(
        {n: t for n, t in stored(tiny_base).items() if "pooler" not in n}, bare / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=r"neither .* nor the base holds 'pooler\.dense\.bias'"):
        extract(open_base(str(bare)), open_tuned(str(write(tuned_folder, without))))


def test_what_is_left_out_inside_the_backbone_is_told(base, tuned_folder, write):
    name = "bert.encoder.layer.0.output.adapters.mine.adapter_down.0.weight"
    delta = extract(base, open_tuned(str(write(tuned_folder, beside(name, (8, 32))(stored(tuned_folder))))))
    (warning,) = delta.warnings
    assert "has no place for (1," in warning
    assert name in warning


def test_a_head_of_another_class_is_left_out_without_a_word(base, tuned_folder, write):
    held = beside("cls.predictions.bias", (90,))(stored(tuned_folder))
    assert extract(base, open_tuned(str(write(tuned_folder, held)))).warnings == ()


def test_a_head_of_another_size_is_refused_naming_tensors_and_both_shapes(tuned_folder, tmp_path):
    folder = Path(shutil.copytree(tuned_folder, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as refusal:
        open_tuned(str(folder))
    assert "'classifier.bias' is [3], expected [2]" in str(refusal.value)
    assert "'classifier.weight' is [3, 32], expected [2, 32]" in str(refusal.value)
    assert "id2label in config.json names 2 labels" in str(refusal.value)


def test_weights_beside_the_models_own_do_not_decide_its_dtype(tiny_base, tmp_path):
    """The folder may hold other weights too: an adapter, an optimiser's state or another format."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    narrow = {n: t.to(torch.bfloat16) for n, t in stored(folder).items()}
    save_file(narrow, folder / "model.safetensors", {"format": "pt"})
    save_file({"state": torch.ones(3)}, folder / "optimizer.safetensors", {"format": "pt"})
    assert open_base(str(folder)).dtype == torch.bfloat16
