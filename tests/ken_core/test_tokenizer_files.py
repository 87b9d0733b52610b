"""Texts become the tokens that AutoTokenizer makes with the fine-tune's own folder, whatever files that has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, BertForSequenceClassification, PreTrainedTokenizerBase, pipeline

import ken_core
from ken_core import Budget, Checkpoint, CheckpointError, Delta, Selection, deltafile, open_base, open_tuned
from ken_core.chat_template import ChatTemplate
from ken_core.errors import DeltaFormatError
from ken_core.tokenization import Encoder, Input
from ken_core.tokenizer_files import carried
from tests.chat_templates import CHATML
from tests.tiny_architectures import ArchitectureBase, served
from tests.tiny_checkpoints import POSITIONS, TEXTS, WORDS, Tiny
from tests.tiny_language_models import write_language_model

Change = Callable[[Path], None]
FAMILIES = {"bert": "word pieces", "roberta": "bytes", "deberta-v2": "pieces", "qwen2": "bytes alone"}
"""Architecture and the kind of its tokenizer."""
SETTINGS = 1000
"""The most bytes that settings alone take."""


def resaved(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return tokenizer


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    plain = json.loads((folder / name).read_text())
    change(plain)
    (folder / name).write_text(json.dumps(plain))


def add_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["kumquat", AddedToken("rain river", lstrip=True, normalized=False)])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<topic>"]})
    tokenizer.save_pretrained(folder)


def bake_in_truncation_and_padding(folder: Path) -> None:
    """Save the tokenizer with truncation and padding, as one does that was used with both."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer(["rain"], padding="max_length", truncation=True, max_length=12)
    tokenizer.save_pretrained(folder)
    told = json.loads((folder / "tokenizer.json").read_text())
    assert told["truncation"]
    assert told["padding"]


def keep_case(folder: Path) -> None:
    edit(folder, "tokenizer.json", lambda plain: plain["normalizer"].update(lowercase=False))


def drop_template(folder: Path) -> None:
    edit(folder, "tokenizer.json", lambda plain: plain.update(post_processor=None))


def without_segments(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", lambda plain: plain.update(model_input_names=["input_ids", "attention_mask"]))


def only_vocab_txt(folder: Path) -> None:
    """Save the tokenizer as BERT's was before there was a tokenizer.json, with its words in another order."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    for path in folder.glob("tokenizer*"):
        path.unlink()
    special, words = list(vocabulary)[:5], list(vocabulary)[5:]
    (folder / "vocab.txt").write_text("\n".join([*special, *reversed(words)]) + "\n")


def only_vocab_and_merges(folder: Path) -> None:
    """Save the tokenizer as some still save those of RoBERTa and GPT-2."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    for path in folder.glob("tokenizer*"):
        path.unlink()
    ids = list(model["vocab"].values())
    turned = dict(zip(model["vocab"], [*ids[:5], *reversed(ids[5:])], strict=True))
    (folder / "vocab.json").write_text(json.dumps(turned))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in model["merges"][:20])]))


CHANGES: dict[str, tuple[Change, str]] = {
    "nothing": (lambda folder: None, "nothing"),
    "form": (lambda folder: edit(folder, "tokenizer.json", lambda plain: None), "nothing"),
    "truncation and padding": (bake_in_truncation_and_padding, "settings"),
    "cut on the left": (lambda folder: resaved(folder, truncation_side="left"), "settings"),
    "padded on the left": (lambda folder: resaved(folder, padding_side="left"), "settings"),
    "shorter": (lambda folder: resaved(folder, model_max_length=9), "settings"),
    "without segments": (without_segments, "settings"),
    "added tokens": (add_tokens, "whole"),
    "no template": (drop_template, "whole"),
}
"""The changes that a fine-tune may make to its tokenizer, and the most that a delta carries of each."""
OWN_CHANGES: dict[str, dict[str, tuple[Change, str]]] = {
    "bert": {"vocab.txt": (only_vocab_txt, "whole"), "case": (keep_case, "whole")},
    "roberta": {"vocab.json and merges.txt": (only_vocab_and_merges, "whole")},
}
CASES = [
    (architecture, change)
    for architecture in FAMILIES
    for change in (*CHANGES, *OWN_CHANGES.get(architecture, ()))
    if not (architecture == "qwen2" and change == "no template")  # it has none
]


@dataclass(frozen=True)
class Own:
    """A fine-tune with a tokenizer of its own: what its folder gives, what the delta does, and `ken apply`'s folder."""

    theirs: PreTrainedTokenizerBase
    encoder: Encoder
    applied: PreTrainedTokenizerBase
    files: Mapping[str, bytes]
    delta: Delta

    def expected(self, given: Input, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
        rows = tokenizer([given], truncation=True, max_length=self.encoder.max_length, padding=False)
        return {name: rows[name][0] for name in rows}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Own]:
    """``own(architecture, change)``: made once."""

    @cache
    def base(architecture: str) -> ArchitectureBase:
        return ArchitectureBase(architecture, tmp_path_factory.mktemp(architecture))

    @cache
    def plain(architecture: str) -> tuple[Delta, Path]:
        """A delta without a tokenizer, and the folder of its fine-tune."""
        made = base(architecture)
        file = made.delta("backbone", "features")
        return deltafile.read(file, made.checkpoint, made.resident.fingerprint.digest), made.folder / "backbone"

    @cache
    def make(architecture: str, change: str) -> Own:
        delta, folder = plain(architecture)
        tuned = Path(shutil.copytree(folder, tmp_path_factory.mktemp(architecture) / "tuned"))
        (CHANGES | OWN_CHANGES.get(architecture, {}))[change][0](tuned)
        checkpoint = base(architecture).checkpoint
        files = carried(checkpoint, open_tuned(str(tuned)))
        changed = replace(delta, files=files)
        out = tmp_path_factory.mktemp("applied") / "out"
        ken_core.apply(checkpoint, changed, out)
        theirs, applied = (AutoTokenizer.from_pretrained(at) for at in (tuned, out))
        return Own(theirs, Encoder.of(checkpoint, changed), applied, files, changed)

    return make


@pytest.mark.parametrize(("architecture", "change"), CASES)
@settings(max_examples=25)
@given(
    st.text(max_size=120)
    | st.lists(st.sampled_from([*WORDS, "kumquat", "<topic>", "rain river", "Rain"])).map(" ".join)
)
def test_any_text_gets_the_ids_of_the_fine_tunes_own_tokenizer(
    own: Callable[[str, str], Own], architecture: str, change: str, text: str
) -> None:
    made = own(architecture, change)
    for given_input in (text, (text, TEXTS[0])):
        (found,) = made.encoder([given_input])
        expected = made.expected(given_input, made.theirs)
        assert list(found.ids) == expected["input_ids"]
        assert (found.type_ids is None) == ("token_type_ids" not in expected)
        assert found.type_ids is None or list(found.type_ids) == expected["token_type_ids"]
        assert made.expected(given_input, made.applied) == expected


@pytest.mark.parametrize(("architecture", "change"), CASES)
def test_no_more_is_carried_than_differs(own: Callable[[str, str], Own], architecture: str, change: str) -> None:
    made, most = own(architecture, change), (CHANGES | OWN_CHANGES.get(architecture, {}))[change][1]
    sizes = {name: len(data) for name, data in made.files.items()}
    if most == "nothing":
        assert sizes == {}
    elif most == "settings":
        assert "tokenizer.json" not in sizes
        assert sum(sizes.values()) < SETTINGS
    else:
        assert sizes.keys() == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(("architecture", "change"), CASES)
def test_lengths_and_sides_are_the_fine_tunes(own: Callable[[str, str], Own], architecture: str, change: str) -> None:
    made = own(architecture, change)
    encoder, theirs = made.encoder, made.theirs
    assert encoder.max_length == min(theirs.model_max_length, POSITIONS)
    assert encoder.truncation_side == theirs.truncation_side == made.applied.truncation_side
    assert encoder.pads_left == (theirs.padding_side == "left")
    assert made.applied.padding_side == theirs.padding_side
    assert (encoder.pad_id, encoder.cls_id) == (theirs.pad_token_id or 0, theirs.cls_token_id)


# Through a file and the resident model


def permuted(tiny: Tiny, to: Path) -> Path:
    """A fine-tune whose words are in another order, in its embedding as in its ``vocab.txt``, its only such file."""
    folder = Path(shutil.copytree(tiny.tuned("in-order", ["good", "bad"], seed=91), to))
    before = AutoTokenizer.from_pretrained(folder).get_vocab()
    only_vocab_txt(folder)
    after = AutoTokenizer.from_pretrained(folder).get_vocab()
    model = BertForSequenceClassification.from_pretrained(folder)
    rows = model.get_input_embeddings().weight
    with torch.no_grad():
        rows[list(after.values())] = rows[[before[token] for token in after]].clone()
    model.save_pretrained(folder)
    return folder


def test_a_permuted_vocabulary_in_vocab_txt_alone_is_served_as_transformers_answers(tiny: Tiny, tmp_path: Path) -> None:
    folder = permuted(tiny, tmp_path / "permuted")
    base = ArchitectureBase("bert", tmp_path)
    shutil.copytree(tiny.base_folder, base.path, dirs_exist_ok=True)
    delta = ken_core.extract(base.checkpoint, open_tuned(str(folder)), Selection(budget=Budget(fraction=1.0)))
    task = served(base, deltafile.write(delta, base.checkpoint, tmp_path / "d.ken"))
    texts = [*TEXTS, " ".join(WORDS[:40])]
    reference = pipeline("text-classification", model=str(folder), top_k=None)
    applied = pipeline("text-classification", model=str(task.applied), top_k=None)
    with_the_bases = pipeline("text-classification", model=str(folder), tokenizer=str(tiny.base_folder), top_k=None)
    for found, text in zip(task.ask("text-classification", texts), texts, strict=True):
        expected = {row["label"]: row["score"] for row in reference(text)[0]}
        assert {row["label"]: row["score"] for row in found} == pytest.approx(expected, abs=1e-5)
        assert {row["label"]: row["score"] for row in applied(text)[0]} == pytest.approx(expected, abs=1e-6)
    wrong = [{r["label"]: r["score"] for r in with_the_bases(text)[0]}["good"] for text in texts]
    right = [{r["label"]: r["score"] for r in reference(text)[0]}["good"] for text in texts]
    assert max(abs(a - b) for a, b in zip(wrong, right, strict=True)) > 0.01


def test_tokenizer_files_are_compressed_and_the_same_inputs_give_the_same_bytes(minilm: Path, tmp_path: Path) -> None:
    """Truncation and padding alone cost 712 kB of a delta of MiniLM."""
    base = open_base(str(minilm))
    words = Path(shutil.copytree(minilm, tmp_path / "words"))
    add_tokens(words)
    baked = Path(shutil.copytree(minilm, tmp_path / "baked"))
    bake_in_truncation_and_padding(baked)
    sizes = {}
    for folder in (words, baked):
        deltas = {name: ken_core.extract(base, open_tuned(str(folder))) for name in ("a", "b")}
        written = [deltafile.write(delta, base, tmp_path / name) for name, delta in deltas.items()]
        delta = deltas["a"]
        assert written[0].path.read_bytes() == written[1].path.read_bytes()
        read = deltafile.read(written[0], base, delta.base_fingerprint)
        assert read.files == delta.files
        sizes[folder.name] = sum(entry.bytes for entry in written[0].manifest.files.values())
    assert len(words.joinpath("tokenizer.json").read_bytes()) > 700_000
    assert sizes["words"] < 200_000
    assert sizes["baked"] < SETTINGS


# Folders


def test_a_folder_without_a_tokenizer_has_the_bases(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.tuned("bare", ["no", "yes"], seed=92), tmp_path / "bare"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert carried(tiny.base, open_tuned(str(folder))) == {}


def test_a_tokenizer_is_carried_to_a_base_that_has_none(tiny: Tiny, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(tiny.base_folder, tmp_path / "bare"))
    for path in bare.glob("tokenizer*"):
        path.unlink()
    base, tuned = open_base(str(bare)), open_tuned(str(tiny.tuned("dressed", ["no", "yes"], seed=93)))
    delta = ken_core.extract(base, tuned)
    assert delta.files.keys() == {"tokenizer.json", "tokenizer_config.json"}
    expected = AutoTokenizer.from_pretrained(tuned.folder)(list(TEXTS))["input_ids"]
    assert [list(row.ids) for row in Encoder.of(base, delta)(list(TEXTS))] == expected


def test_a_base_of_vocab_txt_alone_shares_it_with_a_fine_tune_that_has_a_tokenizer_json(
    tiny: Tiny, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(tiny.base_folder, tmp_path / "bare"))
    only_vocab_txt(bare)
    tuned = Path(shutil.copytree(tiny.tuned("newer", ["no", "yes"], seed=94), tmp_path / "tuned"))
    for path in tuned.glob("tokenizer*"):
        path.unlink()
    AutoTokenizer.from_pretrained(bare, model_max_length=7, truncation_side="left").save_pretrained(tuned)
    base = open_base(str(bare))
    delta = ken_core.extract(base, open_tuned(str(tuned)))
    assert delta.files.keys() == {"tokenizer_config.json"}
    ken_core.apply(base, delta, tmp_path / "out")
    for folder in (tuned, tmp_path / "out"):
        expected = AutoTokenizer.from_pretrained(folder)(list(TEXTS), truncation=True)["input_ids"]
        assert [list(row.ids) for row in Encoder.of(base, delta)(list(TEXTS))] == expected


def test_a_tokenizer_without_a_fast_form_is_refused_by_name(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.tuned("slow", ["no", "yes"], seed=95), tmp_path / "slow"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CanineTokenizer"}))
    with pytest.raises(CheckpointError, match="a CanineTokenizer, a tokenizer without a fast form"):
        carried(tiny.base, open_tuned(str(folder)))


@pytest.mark.parametrize("told", [{"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}, {"tokenizer_class": 7}])
def test_a_tokenizer_that_asks_for_its_own_code_or_makes_no_sense_is_refused(
    told: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny.tuned("strange", ["no", "yes"], seed=96), tmp_path / "strange"))
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(CheckpointError, match=r"own code|cannot be used"):
        carried(tiny.base, open_tuned(str(folder)))


@pytest.mark.skipif(
    find_spec("sentencepiece") is not None, reason="sentencepiece is installed, and would read the model"
)
def test_a_sentencepiece_model_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    base = ArchitectureBase("deberta-v2", tmp_path)
    base.delta("backbone", "features")
    folder = tmp_path / "backbone"
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "spm.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(
        CheckpointError, match=r"only the package sentencepiece reads its model.* save a tokenizer\.json"
    ):
        carried(base.checkpoint, open_tuned(str(folder)))


# Chat templates

OTHER = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
ASKED = [{"role": "user", "content": "How far is the city?"}]


def retemplate(template: Any, *, as_files: bool = True, **options: Any) -> Change:
    """Save the tokenizer with another chat template, as files of its own or in tokenizer_config.json."""

    def change(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        tokenizer.chat_template = template
        shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder, save_jinja_files=as_files)

    return change


TEMPLATE_CHANGES: dict[str, tuple[Change, str]] = {
    "the base's own": (retemplate(CHATML), "nothing"),
    "the base's own, in the config": (retemplate(CHATML, as_files=False), "nothing"),
    "another": (retemplate(OTHER), "settings"),
    "another, in the config": (retemplate(OTHER, as_files=False), "settings"),
    "several": (retemplate({"default": OTHER, "tool_use": CHATML}), "settings"),
    "several, in the config": (retemplate({"default": OTHER, "tool_use": CHATML}, as_files=False), "settings"),
    "none": (retemplate(None), "settings"),
    "a special token of the model's own": (
        retemplate("{{ image_token }}" + OTHER, image_token="<|endoftext|>"),
        "settings",
    ),
    "spaces cleaned up": (retemplate(CHATML, clean_up_tokenization_spaces=True), "settings"),
}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_base(str(write_language_model(tmp_path_factory.mktemp("language") / "base")))


def prompts(tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    if tokenizer.chat_template is None:
        return [None, None]
    return [tokenizer.apply_chat_template(ASKED, tools=tools, tokenize=False) for tools in (None, [{"type": "f"}])]


def rendered(chat: ChatTemplate | None) -> list[str | None]:
    if chat is None:
        return [None, None]
    return [chat.render(ASKED, tools, opens_answer=False) for tools in (None, [{"type": "f"}])]


@pytest.mark.parametrize("change", TEMPLATE_CHANGES)
def test_a_task_has_its_own_chat_template(change: str, language_model: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(language_model.folder, tmp_path / "tuned"))
    alter, most = TEMPLATE_CHANGES[change]
    alter(folder)
    delta = ken_core.extract(language_model, open_tuned(str(folder)))
    assert delta.files.keys() == (set() if most == "nothing" else {"tokenizer_config.json"})
    written = deltafile.write(delta, language_model, tmp_path / "d.ken")
    read = deltafile.read(written, language_model, delta.base_fingerprint)
    ken_core.apply(language_model, read, tmp_path / "applied")
    theirs, applied = (AutoTokenizer.from_pretrained(at) for at in (folder, tmp_path / "applied"))
    assert rendered(Encoder.of(language_model, read).chat) == prompts(theirs) == prompts(applied)
    assert applied.clean_up_tokenization_spaces == theirs.clean_up_tokenization_spaces
    assert prompts(theirs) != [None, None] or change == "none"


def test_the_bases_templates_are_copied_where_a_task_brings_none(language_model: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(language_model.folder, tmp_path / "base"))
    retemplate({"default": OTHER, "tool_use": CHATML})(folder)
    base = open_base(str(folder))
    delta = ken_core.extract(base, open_tuned(str(folder)))
    assert delta.files == {}
    ken_core.apply(base, delta, tmp_path / "applied")
    theirs, applied = (AutoTokenizer.from_pretrained(at) for at in (folder, tmp_path / "applied"))
    assert prompts(applied) == prompts(theirs) == rendered(Encoder.of(base, delta).chat)


def test_a_delta_of_an_earlier_release_has_no_template_beside_its_own_tokenizer(
    language_model: Checkpoint, tmp_path: Path
) -> None:
    """Those that brought a tokenizer brought it without its template, so which one it had is not known."""
    delta = ken_core.extract(language_model, open_tuned(str(language_model.folder)))
    own = replace(delta, files={"tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}'})
    assert Encoder.of(language_model, delta).chat is not None
    assert Encoder.of(language_model, own).chat is None


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (7, "neither a text nor a list"),
        ([{"name": "../../x", "template": "a"}], "without a plain name"),
        ([{"name": "default"}], "without a plain name"),
        (["a"], "without a plain name"),
        ([{"name": "default", "template": "a"}] * 99, "neither a text nor a list of a few"),
        ("a" * (1 << 19), "chat template of 524288 characters; at most 262144"),
    ],
)
def test_a_strange_chat_template_is_refused(
    template: Any, match: str, language_model: Checkpoint, tmp_path: Path
) -> None:
    delta = ken_core.extract(language_model, open_tuned(str(language_model.folder)))
    told = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template})
    hostile = replace(delta, files={"tokenizer_config.json": told.encode()})
    written = deltafile.write(hostile, language_model, tmp_path / "d.ken")
    with pytest.raises(DeltaFormatError, match=match):
        deltafile.read(written, language_model, delta.base_fingerprint)
