"""Adapter folders that are damaged, lie, or hold what a delta cannot: each is refused with what was found in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaModel

from ken_core.adapters import import_peft
from ken_core.checkpoint import Checkpoint, open_base
from ken_core.errors import CheckpointError

Config = dict[str, Any]
Tensors = dict[str, Any]
Edit = Callable[[Config, Tensors], object]

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
HEAD = "base_model.model.classifier"
SMALL = {"vocab_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="module")
def base(save_random) -> Checkpoint:
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, max_position_embeddings=16,
        **SMALL,
    )  # fmt: skip
    return open_base(str(save_random(BertModel, config)))


def lora() -> tuple[Config, Tensors]:
    """What peft saves of a LoRA of one matrix, in the keys that matter."""
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4}
    return {**config, "base_model_name_or_path": "some/base"}, {
        f"{QUERY}.lora_A.weight": torch.ones(2, 8),
        f"{QUERY}.lora_B.weight": torch.ones(8, 2),
        f"{HEAD}.weight": torch.ones(3, 8),
        f"{HEAD}.bias": torch.zeros(3),
    }


def shira() -> tuple[Config, Tensors]:
    return {"peft_type": "SHIRA", "task_type": "SEQ_CLS", "r": 1}, {
        f"{QUERY}.shira_weight": torch.ones(3),
        f"{QUERY}.shira_indices": torch.tensor([[0, 1, 7], [7, 0, 7]], dtype=torch.int32),
        f"{HEAD}.weight": torch.ones(3, 8),
        f"{HEAD}.bias": torch.zeros(3),
    }


def write_adapter(folder: Path, config: Any, tensors: Tensors) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def edited(tmp_path) -> Callable[..., Path]:
    """``edited(edit, kind)``: the folder of an adapter that was changed."""

    def write(edit: Edit, kind: Callable[[], tuple[Config, Tensors]] = lora) -> Path:
        config, tensors = kind()
        edit(config, tensors)
        return write_adapter(tmp_path / "adapter", config, tensors)

    return write


def setting(**changes: Any) -> Edit:
    return lambda config, tensors: config.update(changes)


def tensor(name: str, value: torch.Tensor) -> Edit:
    return lambda config, tensors: tensors.update({name: value})


def without(*names: str) -> Edit:
    return lambda config, tensors: [tensors.pop(name) for name in names]


A, B = f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"
INDICES, SHIFTS = f"{QUERY}.shira_indices", f"{QUERY}.shira_weight"


def test_the_sound_adapters_are_imported(edited, base, tmp_path):
    found = import_peft(edited(lambda config, tensors: None), base)
    assert found.lowrank.keys() == {"encoder.layer.0.attention.self.query.weight"}
    assert [e.scale for e in found.lowrank.values()] == [2.0]
    found = import_peft(write_adapter(tmp_path / "shira", *shira()), base)
    assert [s.values.size for s in found.sparse.values()] == [3]


LORA_LIES: dict[str, tuple[Edit, str]] = {
    "another kind": (setting(peft_type="IA3"), "'IA3' adapter; expected LORA or SHIRA.*ken extract"),
    "no kind": (lambda c, t: c.pop("peft_type"), "peft_type"),
    "DoRA": (setting(use_dora=True), "use_dora"),
    "activated LoRA": (setting(alora_invocation_tokens=[3]), "alora_invocation_tokens"),
    "replicated layers": (setting(layer_replication=[[0, 1], [0, 1]]), "layer_replication"),
    "single tokens": (setting(trainable_token_indices=[1]), "trainable_token_indices"),
    "biases of factors": (setting(lora_bias=True), "lora_bias"),
    "an initialisation that changes the base": (setting(init_lora_weights="pissa_niter_4"), "pissa_niter_4.*changes"),
    "another task": (setting(task_type="SEQ_2_SEQ_LM"), "SEQ_2_SEQ_LM.*expected SEQ_CLS.*--architecture"),
    "no task": (setting(task_type=None), "--architecture"),
    "a class that is none": (setting(task_type=None, auto_mapping={"base_model_class": "os"}), "is a 'os', which"),
    "a class of another model": (
        setting(task_type=None, auto_mapping={"base_model_class": "LlamaForSequenceClassification"}),
        "trained as a LlamaForSequenceClassification, the base is of architecture 'bert'",
    ),
    "a rank that is no number": (setting(r="many"), r"\br\b"),
    "no rank at all": (setting(r=0), r"\br\b"),
    "an infinite alpha": (setting(lora_alpha=float("inf")), "lora_alpha"),
    "an alpha that overflows": (setting(lora_alpha=1e39), "by more than float32 can hold"),
    "another rank": (setting(r=3), "have rank 2; its config says 3"),
    "another rank of the module": (setting(rank_pattern={"query": 5}), "have rank 2; its config says 5"),
    "a pattern that does not compile": (setting(alpha_pattern={"(query": 5}), "is not a regular expression"),
    "patterns that are no table": (setting(rank_pattern=["query"]), "rank_pattern"),
    "one factor": (without(B), "holds lora_A.weight of 'bert.encoder.layer.0.attention.self.query'; expected"),
    "no factors": (without(A, B), "no tensors of a LORA adapter"),
    "factors and shifts": (lambda c, t: t.update(shira()[1]), "holds lora_A.weight, lora_B.weight, shira_indices"),
    "factors of other ranks": (tensor(B, torch.ones(8, 3)), r"expected matrices \(rank, inputs\)"),
    "a factor of one axis": (tensor(A, torch.ones(8)), r"expected matrices \(rank, inputs\)"),
    "factors of two dtypes": (tensor(A, torch.ones(2, 8).half()), "of one dtype"),
    "a factor of another width": (tensor(A, torch.ones(2, 9)), r"as a matrix \[8, 9\], the base's is.*some/base"),
    "a transposed factor": (
        lambda c, t: t.update({A: torch.ones(8, 2), B: torch.ones(2, 8)}) or c.update(r=8),
        r"as a matrix \[2, 2\]",
    ),
    "integers": (tensor(A, torch.ones(2, 8, dtype=torch.int32)), "is torch.int32; expected"),
    "eight-bit floats": (tensor(A, torch.ones(2, 8).to(torch.float8_e4m3fn)), "is torch.float8_e4m3fn; expected"),
    "NaN": (tensor(A, torch.full((2, 8), float("nan"))), "NaN or infinity"),
    "infinity in the head": (tensor(f"{HEAD}.bias", torch.full((3,), float("inf"))), "NaN or infinity"),
    "a product that overflows": (
        lambda c, t: t.update({A: torch.full((2, 8), 1e20), B: torch.full((8, 2), 1e20)}),
        "by more than float32 can hold",
    ),
    "an empty tensor": (tensor(A, torch.ones(0, 8)), "is empty.*gathering"),
    "a name without peft's prefix": (tensor("classifier.weight", torch.ones(3, 8)), "start with 'base_model.model.'"),
    "a module the base lacks": (
        lambda c, t: t.update({n.replace("layer.0", "layer.9"): t.pop(n) for n in (A, B)}),
        "shifts 'bert.encoder.layer.9.attention.self.query', which a BertForSequenceClassification does not have",
    ),
    "a module that is no layer": (
        lambda c, t: t.update({n.replace("attention.self.query", "output.LayerNorm"): t.pop(n) for n in (A, B)}),
        "a LayerNorm; expected a linear or embedding layer",
    ),
    "a tensor the base lacks": (tensor(f"{QUERY}.lora_magnitude_vector", torch.ones(8)), "has no place for"),
    "a name that is no module": (tensor("base_model.model.", torch.ones(8)), "has no place for"),
    "a bias of another shape": (tensor(f"{QUERY}.base_layer.bias", torch.ones(9)), r"shape \[9\], the base's is \[8\]"),
    "an embedding of another width": (
        tensor("base_model.model.bert.embeddings.word_embeddings.weight", torch.ones(25, 9)),
        r"shape \[25, 9\]",
    ),
    "a weight both replaced and shifted": (tensor(f"{QUERY}.base_layer.weight", torch.ones(8, 8)), "both replaces"),
    "heads of two sizes": (tensor(f"{HEAD}.bias", torch.zeros(4)), "heads of 3 and 4 labels"),
    "a head of another width": (tensor(f"{HEAD}.weight", torch.ones(3, 9)), r"shape \[3, 9\], the base's is \[3, 8\]"),
    "no head": (without(f"{HEAD}.weight", f"{HEAD}.bias"), "saved without 'classifier.bias'.*modules_to_save"),
    "half a head": (without(f"{HEAD}.bias"), "saved without 'classifier.bias'.*modules_to_save"),
    "a head the base would shift": (
        lambda c, t: (
            without(f"{HEAD}.weight")(c, t),
            t.update({f"{HEAD}.lora_A.weight": torch.ones(2, 8), f"{HEAD}.lora_B.weight": torch.ones(3, 2)}),
        ),
        "shifts 'classifier.weight', which is neither in the adapter nor in the base's files",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LORA_LIES)
def test_a_lora_adapter_that_does_not_hold_is_refused_saying_why(edited, base, lie):
    edit, reason = LORA_LIES[lie]
    with pytest.raises(CheckpointError, match=reason):
        import_peft(edited(edit), base)


SHIRA_LIES: dict[str, tuple[Edit, str]] = {
    "no positions": (without(INDICES), "expected shira_weight and shira_indices"),
    "another number of values": (tensor(SHIFTS, torch.ones(4)), r"expected \(n\) and \(2, n\)"),
    "positions of three axes": (tensor(INDICES, torch.zeros(3, 3, dtype=torch.int32)), r"expected \(n\) and \(2, n\)"),
    "a position outside": (tensor(INDICES, torch.tensor([[0, 1, 8], [0, 0, 0]]).int()), "outside.*\\[8, 8\\]"),
    "a negative position": (tensor(INDICES, torch.tensor([[0, 1, -1], [0, 0, 0]]).int()), "outside"),
    "a huge position": (tensor(INDICES, torch.tensor([[0, 1, 1 << 62], [0, 0, 1 << 62]])), "outside"),
    "a position twice": (tensor(INDICES, torch.tensor([[0, 1, 1], [0, 5, 5]]).int()), "twice"),
    "half a position": (tensor(INDICES, torch.tensor([[0, 1, 2.5], [0, 0, 0]])), "no whole numbers"),
    "a position that is no number": (tensor(INDICES, torch.full((2, 3), float("nan"))), "NaN"),
    "truth values for positions": (tensor(INDICES, torch.ones(2, 3, dtype=torch.bool)), "is torch.bool"),
    "NaN": (tensor(SHIFTS, torch.full((3,), float("nan"))), "NaN or infinity"),
    "shifts that overflow": (tensor(SHIFTS, torch.full((3,), 1e39, dtype=torch.float64)), "NaN or infinity"),
    "an embedding": (
        lambda c, t: t.update(
            {n.replace("encoder.layer.0.attention.self.query", "embeddings.word_embeddings"): t.pop(n)
             for n in (INDICES, SHIFTS)}
        ),
        "no linear layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", SHIRA_LIES)
def test_a_shira_adapter_that_does_not_hold_is_refused_saying_why(edited, base, lie):
    edit, reason = SHIRA_LIES[lie]
    with pytest.raises(CheckpointError, match=reason):
        import_peft(edited(edit, shira), base)


def test_positions_saved_as_floats_are_read(edited, base):
    def as_floats(config: Config, tensors: Tensors) -> None:
        tensors[INDICES] = tensors[INDICES].float()

    assert [s.values.size for s in import_peft(edited(as_floats, shira), base).sparse.values()] == [3]


# the folder


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 100_000, '{"peft_type": 3}', "\xff"])
def test_a_config_that_is_none_is_refused(edited, base, text):
    folder = edited(lambda config, tensors: None)
    (folder / "adapter_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        import_peft(folder, base)


def test_a_folder_without_its_files_is_refused(edited, base, tmp_path):
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        import_peft(tmp_path / "nothing", base)
    folder = edited(lambda config, tensors: None)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither an adapter_model\.safetensors"):
        import_peft(folder, base)


def test_a_file_in_the_folders_place_is_refused(base, tmp_path):
    (tmp_path / "adapter").write_text("")
    with pytest.raises(CheckpointError):
        import_peft(tmp_path / "adapter", base)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_damaged_safetensors_file_is_refused(edited, base, keep):
    file = edited(lambda config, tensors: None) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged"):
        import_peft(file.parent, base)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("must-not-exist"),)


@pytest.mark.parametrize(
    "content",
    [{"base_model.model.x": _Code()}, _Code(), [torch.ones(2)], {"base_model.model.x": 3}, {3: torch.ones(2)},
     {A: torch.ones(1).expand(1 << 40)}, {A: torch.ones(2, 8).to_sparse()}],
    ids=["code", "only code", "a list", "a number", "a numbered tensor", "a bomb", "a sparse tensor"],
)  # fmt: skip
def test_a_pickle_that_holds_more_than_tensors_is_refused(edited, base, monkeypatch, tmp_path, content):
    monkeypatch.chdir(tmp_path)
    folder = edited(lambda config, tensors: None)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(content, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError):
        import_peft(folder, base)
    assert not Path("must-not-exist").exists()


# the base


def test_an_adapter_of_another_architecture_is_refused_naming_the_base_it_was_trained_on(edited, save_random):
    config = LlamaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, max_position_embeddings=16,
        **SMALL,
    )  # fmt: skip
    llama = open_base(str(save_random(LlamaModel, config)))
    with pytest.raises(CheckpointError, match=r"a LlamaForSequenceClassification.*some/base"):
        import_peft(edited(lambda config, tensors: None), llama)


def test_a_pooler_that_neither_base_nor_adapter_holds_is_missed(edited, save_random, base):
    without_pooler = open_base(str(save_random(BertForMaskedLM, base.config)))
    with pytest.raises(CheckpointError, match=r"saved without 'bert\.pooler"):
        import_peft(edited(lambda config, tensors: None), without_pooler)


@pytest.mark.parametrize("module", ["lm_head", "transformer.wte"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_tied_output_layer_is_neither_shifted_nor_replaced(save_random, tmp_path, module, whole):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, **SMALL)
    gpt2 = open_base(str(save_random(GPT2LMHeadModel, config)))
    name = f"base_model.model.{module}"
    factors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(24, 2)}
    if module != "lm_head":
        factors = {f"{name}.lora_embedding_A": torch.ones(2, 24), f"{name}.lora_embedding_B": torch.ones(8, 2)}
    layer = "base_model.model.transformer.h.0.attn.c_attn"
    other = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(24, 2)}
    tensors = {**other, "base_model.model.lm_head.weight": torch.ones(24, 8)} if whole else {**other, **factors}
    folder = write_adapter(tmp_path / "adapter", {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2}, tensors)
    with pytest.raises(CheckpointError, match="ties"):
        import_peft(folder, gpt2)


def test_a_head_of_more_precision_than_the_base_is_refused_or_cast(edited, save_random, base):
    half = open_base(str(save_random(BertModel, base.config, dtype=torch.bfloat16)))
    folder = edited(tensor(f"{HEAD}.weight", torch.full((3, 8), 0.1)))
    with pytest.raises(CheckpointError, match="--cast"):
        import_peft(folder, half)
    assert import_peft(folder, half, cast=True).head["classifier.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["a"], "1 labels were given.*has 3"),
        (["a", "b", "c", "d"], "4 labels were given.*has 3"),
        (["a", "b", "b"], "2 of them different"),
    ],
)
def test_labels_that_the_head_does_not_have_are_refused(edited, base, labels, reason):
    with pytest.raises(CheckpointError, match=reason):
        import_peft(edited(lambda config, tensors: None), base, labels=labels)


def test_labels_of_a_model_without_any_are_refused(edited, base):
    def bare(config: Config, tensors: Tensors) -> None:
        without(f"{HEAD}.weight", f"{HEAD}.bias")(config, tensors)
        for name in (A, B):
            tensors[name.replace("model.bert.", "model.")] = tensors.pop(name)
        config.update(task_type="FEATURE_EXTRACTION")

    folder = edited(bare)
    assert import_peft(folder, base).head == {}
    with pytest.raises(CheckpointError, match="has none"):
        import_peft(folder, base, labels=["a", "b"])


@pytest.mark.parametrize("architecture", ["BertForNothing", "PreTrainedModel", "torch", "LlamaModel"])
def test_an_architecture_that_does_not_go_with_the_base_is_refused(edited, base, architecture):
    with pytest.raises(CheckpointError, match=architecture):
        import_peft(edited(lambda config, tensors: None), base, architecture=architecture)
