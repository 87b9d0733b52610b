"""Adapters imported from folders that peft wrote: they answer as peft's own merged model does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    RobertaConfig,
)

from ken_core import apply, import_peft
from ken_core.bits import same_bits
from ken_core.checkpoint import open_base
from ken_core.delta import merge
from ken_core.deltafile import open_file, read, write
from ken_core.heads import graft
from ken_core.resident import ResidentModel
from ken_core.tokenization import Encoder
from tests.ken_core.adapters import Made, make_adapter
from tests.tiny_language_models import write_chat_tokenizer, write_language_model

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning:transformers")
Lora, Shira = peft.LoraConfig, peft.ShiraConfig

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2, "vocab_size": 96}
CONFIGS = {
    "bert": BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=32,
        **_TOKENS,
    ),
    "roberta": RobertaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=32,
        **_TOKENS,
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, **_TOKENS),
    "llama": LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        max_position_embeddings=32, **_TOKENS,
    ),
}  # fmt: skip
TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "roberta": ["query", "key", "output.dense"],
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random backbone of each architecture."""
    folder = tmp_path_factory.mktemp("bases")
    for name, config in CONFIGS.items():
        torch.manual_seed(7)
        AutoModel.from_config(config).save_pretrained(folder / name)
    return {name: folder / name for name in CONFIGS}


@pytest.fixture
def make(bases: dict[str, Path], tmp_path: Path) -> Callable[..., Made]:
    """``make("bert", Lora(…), AutoModelFor…)``: an adapter made by peft."""

    def adapter(name: str, config: Any, auto_class: Any = AutoModelForSequenceClassification, **options: Any) -> Made:
        if auto_class is AutoModelForSequenceClassification:
            options.setdefault("num_labels", 3)
        return make_adapter(bases[name], auto_class, config, tmp_path / "adapter", **options)

    return adapter


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 96, (3, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def assert_answers_as_merged(made: Made, batch: dict[str, torch.Tensor], out: Path, **options: Any) -> Any:
    """The resident model and the applied folder, and the delta as read back from its file."""
    base = open_base(str(made.base))
    file = write(import_peft(made.folder, base, **options), base, out / "delta.ken")
    expected = made.answers(batch)
    resident = ResidentModel(open_base(str(made.base)))
    delta = read(open_file(file.path), resident.checkpoint, resident.fingerprint.digest)
    for materialised in (False, True):
        attached = resident.attach(delta, materialised=materialised)
        model = graft(resident.backbone, delta.architecture, delta.config, attached.head)
        resident.activate(attached)
        with torch.no_grad():
            torch.testing.assert_close(model(**batch)[0], expected, rtol=0, atol=1e-5)
        assert resident.verify() == []
    apply(base, delta, out / "applied")
    loaded = getattr(transformers, delta.architecture).from_pretrained(out / "applied").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch)[0], expected, rtol=0, atol=1e-5)
    return delta


@pytest.mark.parametrize("name", CONFIGS)
def test_a_lora_classifier_answers_as_peft_merges_it(make, batch, tmp_path, name):
    made = make(name, Lora(task_type="SEQ_CLS", r=4, lora_alpha=6, target_modules=TARGETS[name]))
    delta = assert_answers_as_merged(made, batch, tmp_path)
    assert delta.adapter == "lora"
    assert delta.kind == "text-classification"
    assert not delta.sparse
    assert {e.rank for e in delta.lowrank.values()} == {4}


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_a_shira_classifier_answers_as_peft_merges_it(make, batch, tmp_path, name):
    unload = name != "roberta"  # peft 0.21 fails to unload a SHiRA model whose head is no single layer
    made = make(name, Shira(task_type="SEQ_CLS", r=2, target_modules=TARGETS[name]), unload=unload)
    delta = assert_answers_as_merged(made, batch, tmp_path)
    assert delta.adapter == "shira"
    assert not delta.lowrank
    assert all(s.selected == 2 * sum(s.shape) for s in delta.sparse.values())


def test_a_shira_adapter_changes_exactly_the_positions_it_trained(make):
    made = make("bert", Shira(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    delta = import_peft(made.folder, open_base(str(made.base)))
    saved = load_file(made.folder / "adapter_model.safetensors")
    for name, entry in delta.sparse.items():
        module = "base_model.model.bert." + name.removesuffix(".weight")
        rows, columns = saved[f"{module}.shira_indices"].long()
        mask = torch.from_numpy(entry.mask).reshape(entry.shape)
        assert mask[rows, columns].all()
        assert mask.sum() == saved[f"{module}.shira_weight"].numel() == entry.values.size


@pytest.mark.parametrize(("name", "rslora"), [("bert", True), ("llama", False)])
def test_scales_and_ranks_of_single_modules_are_honoured(make, batch, tmp_path, name, rslora):
    first, second = TARGETS[name][:2]
    config = Lora(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=8,
        use_rslora=rslora,
        target_modules=TARGETS[name],
        rank_pattern={first: 2, rf".*\.1\..*{second}": 6},
        alpha_pattern={rf"layers?\.0\..*{first}": 1, second: 3},
    )
    delta = assert_answers_as_merged(make(name, config), batch, tmp_path)
    assert {e.rank for e in delta.lowrank.values()} == {2, 4, 6}
    assert len({e.scale for e in delta.lowrank.values()}) == (5 if rslora else 4)


def test_biases_and_whole_modules_of_the_backbone_become_sparse_entries(make, batch, tmp_path):
    config = Lora(task_type="SEQ_CLS", r=2, bias="all", target_modules=["query"], modules_to_save=["pooler"])
    delta = assert_answers_as_merged(make("bert", config), batch, tmp_path)
    assert {"pooler.dense.weight", "pooler.dense.bias", "embeddings.LayerNorm.bias"} <= delta.sparse.keys()
    assert delta.head.keys() == {"classifier.weight", "classifier.bias"}


def test_biases_of_the_shifted_layers_alone_are_brought_too(make, batch, tmp_path):
    config = Lora(task_type="SEQ_CLS", r=2, bias="lora_only", target_modules=["query"])
    delta = assert_answers_as_merged(make("bert", config), batch, tmp_path)
    assert delta.sparse.keys() == {f"encoder.layer.{i}.attention.self.query.bias" for i in (0, 1)}


@pytest.mark.parametrize(
    ("name", "embedding"), [("bert", "word_embeddings"), ("gpt2", "wpe"), ("llama", "embed_tokens")]
)
def test_a_shifted_embedding_answers_as_peft_merges_it(make, batch, tmp_path, name, embedding):
    made = make(name, Lora(task_type="SEQ_CLS", r=3, target_modules=[embedding, TARGETS[name][0]]))
    delta = assert_answers_as_merged(made, batch, tmp_path)
    assert any(embedding in n for n in delta.lowrank)


def test_a_rank_above_the_matrix_is_stored_as_the_values_it_gives(make, batch, tmp_path):
    made = make("llama", Lora(task_type="SEQ_CLS", r=20, target_modules=["k_proj", "down_proj"]))
    delta = assert_answers_as_merged(made, batch, tmp_path)
    assert delta.sparse.keys() == {f"layers.{i}.self_attn.k_proj.weight" for i in (0, 1)}
    assert {e.rank for e in delta.lowrank.values()} == {20}


@pytest.mark.parametrize(
    ("name", "task", "auto_class", "kind"),
    [
        ("bert", "TOKEN_CLS", AutoModelForTokenClassification, "token-classification"),
        ("bert", "QUESTION_ANS", AutoModelForQuestionAnswering, "question-answering"),
        ("bert", "FEATURE_EXTRACTION", AutoModel, "feature-extraction"),
        ("gpt2", "CAUSAL_LM", AutoModelForCausalLM, "text-generation"),
    ],
)
def test_an_adapter_of_another_task_has_that_tasks_class(make, batch, tmp_path, name, task, auto_class, kind):
    made = make(name, Lora(task_type=task, r=2, target_modules=TARGETS[name]), auto_class)
    assert assert_answers_as_merged(made, batch, tmp_path).kind == kind


@pytest.mark.parametrize(
    ("config", "auto_class", "task", "target"),
    [
        (CONFIGS["llama"], AutoModelForCausalLM, "CAUSAL_LM", "lm_head"),
        (CONFIGS["bert"], AutoModelForMaskedLM, None, "transform.dense"),
    ],
    ids=["llama", "bert"],
)
def test_a_head_that_the_base_has_is_brought_along_with_the_adapters_shift(
    batch, tmp_path, config, auto_class, task, target
):
    torch.manual_seed(8)
    auto_class.from_config(config).save_pretrained(tmp_path / "base")
    lora = Lora(task_type=task, r=2, target_modules=[TARGETS[config.model_type][0], target])
    made = make_adapter(tmp_path / "base", auto_class, lora, tmp_path / "adapter")
    delta = assert_answers_as_merged(made, batch, tmp_path)
    assert any(target in name for name in delta.head)
    assert not any(target in name for name in delta.lowrank)


@pytest.mark.parametrize("labels", [2, 3])
def test_a_base_with_a_head_of_its_own_lends_it_or_gives_way_to_the_adapters(batch, tmp_path, labels):
    torch.manual_seed(9)
    AutoModelForSequenceClassification.from_config(CONFIGS["bert"]).save_pretrained(tmp_path / "base")
    saved = ["classifier"] if labels == 3 else None
    made = make_adapter(
        tmp_path / "base",
        AutoModelForSequenceClassification,
        Lora(r=2, target_modules=["query"], modules_to_save=saved),
        tmp_path / "adapter",
        num_labels=labels,
        ignore_mismatched_sizes=True,
    )
    delta = assert_answers_as_merged(made, batch, tmp_path)
    assert delta.head["classifier.weight"].shape == (labels, 32)


@pytest.mark.parametrize(("kind", "dtype"), [(Lora, torch.bfloat16), (Lora, torch.float16), (Shira, torch.bfloat16)])
def test_merged_weights_of_a_half_precision_base_are_peft_s_bit_for_bit(tmp_path, bases, dtype, kind):
    AutoModel.from_pretrained(bases["bert"], dtype=dtype).save_pretrained(tmp_path / "half")
    config = kind(task_type="SEQ_CLS", r=3, target_modules=["query", "value"])
    made = make_adapter(
        tmp_path / "half", AutoModelForSequenceClassification, config, tmp_path / "adapter", num_labels=3, dtype=dtype
    )
    base = open_base(str(made.base))
    merged = merge(base, import_peft(made.folder, base, cast=True))
    theirs = made.merged.base_model.state_dict()
    assert all(same_bits(theirs[n], t) for n, t in merged.items())


def test_added_tokens_come_with_the_adapter(make, batch, tmp_path):
    made = make("bert", Lora(task_type="SEQ_CLS", r=2, target_modules=["query"]), resize=99)
    batch["input_ids"][0, 1] = 98
    delta = assert_answers_as_merged(made, batch, tmp_path)
    assert delta.dense["embeddings.word_embeddings.weight"].shape == (99, 32)


def test_a_pickled_adapter_is_read_as_tensors_alone(make):
    made = make("bert", Lora(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    base = open_base(str(made.base))
    expected = import_peft(made.folder, base)
    tensors = load_file(made.folder / "adapter_model.safetensors")
    (made.folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, made.folder / "adapter_model.bin")
    found = import_peft(made.folder, base)
    assert all(same_bits(found.lowrank[n].a, e.a) for n, e in expected.lowrank.items())
    assert all(same_bits(found.head[n], t) for n, t in expected.head.items())


def test_labels_are_those_given_or_the_bases_or_numbered(make, tmp_path):
    made = make("bert", Lora(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    base = open_base(str(made.base))
    assert import_peft(made.folder, base).config.get("id2label") == {str(i): f"LABEL_{i}" for i in range(3)}
    named = import_peft(made.folder, base, labels=["place", "person", "number"])
    assert write(named, base, tmp_path / "d").manifest.labels == ["place", "person", "number"]
    base.config.id2label = {0: "a", 1: "b", 2: "c"}
    assert import_peft(made.folder, base).config["id2label"] == {"0": "a", "1": "b", "2": "c"}


def test_a_tokenizer_beside_the_adapter_is_brought_along(make, tiny_base, tmp_path):
    config = Lora(task_type="SEQ_CLS", r=2, target_modules=["query"])
    made = make_adapter(tiny_base, AutoModelForSequenceClassification, config, tmp_path / "adapter")
    base = open_base(str(tiny_base))
    assert import_peft(made.folder, base).files == {}
    plain = json.loads((tiny_base / "tokenizer.json").read_text())
    plain["normalizer"]["lowercase"] = False
    (made.folder / "tokenizer.json").write_text(json.dumps(plain))
    (made.folder / "tokenizer_config.json").write_bytes((tiny_base / "tokenizer_config.json").read_bytes())
    assert import_peft(made.folder, base).files.keys() == {"tokenizer.json", "tokenizer_config.json"}


def test_an_adapter_of_minilm_answers_as_peft_merges_it(minilm, tmp_path):
    config = Lora(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    made = make_adapter(minilm, AutoModelForSequenceClassification, config, tmp_path / "adapter", num_labels=6)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    texts = tokenizer(["What is an atom ?", "How far is it from Denver to Aspen ?"], padding=True, return_tensors="pt")
    delta = assert_answers_as_merged(made, dict(texts), tmp_path)
    assert len(delta.lowrank) == 12
    assert (tmp_path / "delta.ken").stat().st_size < 1 << 20


# Adapters of language models


@pytest.fixture(scope="module")
def of_language_model(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("language")
    base = write_language_model(folder / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    return make_adapter(base, AutoModelForCausalLM, config, folder / "lora")


@pytest.mark.parametrize("settings_in_base", ["its own", "of its config", "none"])
@pytest.mark.parametrize("own", [None, {"eos_token_id": 5, "do_sample": False}])
def test_an_adapter_of_a_language_model_generates_as_its_folder_says_or_as_its_base(
    of_language_model, tmp_path, settings_in_base, own
):
    base, adapter = (
        Path(shutil.copytree(f, tmp_path / f.name)) for f in (of_language_model.base, of_language_model.folder)
    )
    if settings_in_base == "none":
        (base / "generation_config.json").unlink()
    elif settings_in_base == "its own":
        (base / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    if own is not None:
        (adapter / "generation_config.json").write_text(json.dumps(own))
    opened = open_base(str(base))
    delta = import_peft(adapter, opened)
    assert delta.kind == "text-generation"
    assert delta.generation == own
    apply(opened, delta, tmp_path / "applied")
    applied = AutoModelForCausalLM.from_pretrained(tmp_path / "applied")
    batch = {"input_ids": torch.tensor([[5, 9, 30, 41]])}
    with torch.no_grad():
        assert torch.allclose(applied(**batch).logits, of_language_model.answers(batch), atol=1e-5)
    ends = {"its own": [2, 3]}.get(settings_in_base, 2)
    assert applied.generation_config.eos_token_id == (ends if own is None else 5)


def test_an_adapter_may_bring_its_chat_template(of_language_model, tmp_path):
    adapter = Path(shutil.copytree(of_language_model.folder, tmp_path / "lora"))
    write_chat_tokenizer(adapter, "{% for m in messages %}{{ m.content }}{% endfor %}")
    base = open_base(str(of_language_model.base))
    chat = Encoder.of(base, import_peft(adapter, base)).chat
    assert chat is not None
    assert chat.render([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]) == "ab"
