"""A BERT small enough to be made in a test, fine-tunes of it, and their deltas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import ken_core
from ken_core import Budget, Checkpoint, DeltaFile, Selection, deltafile, open_base, open_tuned
from ken_core.fingerprint import fingerprint

_VOCABULARY = """
a an and are as at bad best book by city climb does dog early ever far film for from good great how in is it jump late
made man many more mountain movie never no not of often on one over plot quick rain red river road run see seen sky
slow so some street sun than that the there this time to town tree very was watch water what when where which who why
wind with woman worst year you ##s ##ed ##ing ##er ##est ##ly , . ? ! - '
"""
WORDS = tuple(_VOCABULARY.split())
POSITIONS = 64
TEXTS = (
    "how far is the mountain from the city?",
    "the worst film ever made",
    "a very good book, and the best plot of the year",
    "what is it",
    "the quick red dog jumped over the slow man and the woman watched - why not?",
    "rain",
)


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS, **options: object) -> None:
    """Write a WordPiece tokenizer like BERT's: lower case, [CLS] and [SEP], segments for pairs."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [*special, *words, *(x for x in letters if x not in words), *(f"##{x}" for x in letters)]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=POSITIONS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        **options,
    ).save_pretrained(folder)


def write_base(folder: Path, seed: int = 0) -> Path:
    """Write a random BERT of 2 layers with hidden size 32, and its tokenizer."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS) + 57,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tuned(
    base: Path,
    folder: Path,
    labels: Sequence[str],
    seed: int,
    problem_type: str | None = None,
    architecture: type[PreTrainedModel] = BertForSequenceClassification,
) -> Path:
    """Write a 'fine-tune': the base's weights with noise, and a random head."""
    torch.manual_seed(seed)
    names = dict(enumerate(labels))
    model = architecture.from_pretrained(
        base, id2label=names, label2id={v: k for k, v in names.items()}, problem_type=problem_type
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            inside = name.startswith("bert.") or architecture is BertModel
            parameter.add_(torch.randn_like(parameter) * (0.1 if inside else 0.7))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def declare_embeddings(folder: Path, pooling: Mapping[str, Any], *then: str) -> None:
    """Make a folder one of sentence-transformers: write its Pooling's file, in the old form, and the list of modules.

    Args:
        then: the modules after the Pooling.
    """
    kinds = ("Transformer", "Pooling", *then)
    places = ("", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i))
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, place) in enumerate(zip(kinds, places, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))


@dataclass(frozen=True)
class Tiny:
    """A base folder and the folder that fine-tunes of it go to."""

    folder: Path
    base_folder: Path

    @cached_property
    def base(self) -> Checkpoint:
        return open_base(str(self.base_folder))

    def tuned(self, name: str, labels: Sequence[str], seed: int, problem_type: str | None = None) -> Path:
        return write_tuned(self.base_folder, self.folder / name, labels, seed, problem_type)

    def embedding(
        self, name: str, seed: int, pooling: str | None = None, prompts: Mapping[str, str] | None = None
    ) -> Path:
        """A fine-tune without a head; it may declare how token vectors are pooled, and prompts."""
        folder = write_tuned(self.base_folder, self.folder / name, [], seed, architecture=BertModel)
        if pooling:
            declare_embeddings(folder, {f"pooling_mode_{pooling}": True})
        if prompts:
            (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
        return folder

    def filling(self, name: str, seed: int) -> Path:
        """A fine-tune of a task kind that has no pipeline."""
        return write_tuned(self.base_folder, self.folder / name, ["no", "yes"], seed, architecture=BertForMaskedLM)

    def beyond_its_words(self) -> Path:
        """A fine-tune whose tokenizer gives ids for which its model's embedding has no rows."""
        folder = self.folder / "beyond"
        if not folder.exists():
            self.tuned("beyond", ["no", "yes"], seed=60)
            tokenizer = json.loads((folder / "tokenizer.json").read_text())
            tokenizer["model"]["vocab"] = {word: 10_000 + i for word, i in tokenizer["model"]["vocab"].items()}
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        return folder

    def delta(self, tuned: Path, kept: float = 0.3) -> DeltaFile:
        """Extract a fine-tune's delta and write it beside its folder."""
        delta = ken_core.extract(self.base, open_tuned(str(tuned)), Selection(budget=Budget(fraction=kept)))
        return deltafile.write(delta, self.base, tuned.with_suffix(".ken"))

    def applied(self, file: DeltaFile) -> Path:
        """The folder `ken apply` writes for a delta: what a dedicated server of this model would load."""
        folder = file.path.with_suffix(".applied")
        if not folder.exists():
            base = ken_core.open_base(str(self.base_folder))
            found = fingerprint(base.backbone_tensors).digest
            ken_core.apply(base, deltafile.read(file, base, found), folder)
        return folder


@dataclass(frozen=True)
class Deltas:
    """Deltas of fine-tunes with different label sets, all of one base."""

    emotion: DeltaFile
    topic: DeltaFile
    spam: DeltaFile
    spam_2: DeltaFile
    """A later version of `spam`."""
    spam_3: DeltaFile


def scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Label -> score."""
    return {row["label"]: row["score"] for row in rows}
