"""A delta's description of itself: the JSON in its file's metadata, checked before anything else is read."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from ken_core.codings import CODE_BITS, Codec, Coding, FactorCodec
from ken_core.embedding import Embedding
from ken_core.foreign_json import is_deeper
from ken_core.merge_recipe import MergeMethod

FORMAT_VERSION = 6
READABLE_VERSIONS = (2, 3, 4, 5, 6)
"""Format 3 added low-rank entries and the kind of adapter that a delta was imported from. Format 4 replaced one pooling
and whether vectors are scaled by all of sentence-transformers' settings, and added compressed tokenizer files. Format 5
added quantised factors, budgets of energy and bytes, kept values that were fitted or distilled, the parents of merged
deltas, and what a calibration promises. Format 6 added how a task generates, and promises about language
models."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-]+$", max_length=512)]
DTypeName = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Size = Annotated[int, Field(ge=0, lt=1 << 40)]
FloatName = Literal["float64", "float32", "float16", "bfloat16"]
Metric = Literal["accuracy", "agreement", "perplexity"]
Adapter = Literal["lora", "shira"]
Length = Annotated[int, Field(gt=0, lt=1 << 40)]
Divergence = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SettingName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
MOST_PARENTS = 256
_DEEPEST_SETTING = 8
MAX_FILE_BYTES = 64 << 20
MAX_FILE_RATIO = 64
"""How many times larger than its stream a tokenizer file may be. Real files are 3 to 8 times larger."""
_ITEMSIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}

TASK_KINDS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stream(_Strict):
    """One byte stream of the file: its length and sha256."""

    bytes: Size
    sha256: Sha256


class FileEntry(Stream):
    """A tokenizer file, stored as it is or compressed with zstd."""

    plain: Annotated[int, Field(gt=0, le=MAX_FILE_BYTES)] | None = None
    """Bytes of the file before compression; None: the file is not compressed."""

    @model_validator(mode="after")
    def _is_no_bomb(self) -> FileEntry:
        if self.plain is not None and self.plain > MAX_FILE_RATIO * self.bytes:
            raise ValueError(
                f"{self.plain} bytes are claimed of a stream of {self.bytes}; "
                f"expected at most {MAX_FILE_RATIO} times as many"
            )
        return self


class SparseEntry(_Strict):
    """Positions (bit mask) and fine-tuned values of a tensor that the base has too."""

    shape: tuple[Size, ...]
    dtype: DTypeName
    selected: Size
    """Elements that the method chose."""
    stored: Size
    """Chosen elements whose bits differ from the base's. Only these are in the file."""
    mask: Stream
    mask_coding: Coding = "bitmap"
    values: Stream


class WholeEntry(_Strict):
    """A tensor stored in full: outside the backbone (head), of another shape than the base's, or absent from the base
    (dense)."""

    shape: Annotated[tuple[Length, ...], Field(max_length=8)]
    dtype: DTypeName
    data: Stream
    codec: Literal["raw", "zstd"] = "raw"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor itself."""
        return prod(self.shape) * _ITEMSIZES[self.dtype]


class LowRankEntry(_Strict):
    """A shift `scale * b @ a` of a whole matrix that the base has too; `a` is (rank, columns), `b` (rows, rank)."""

    shape: tuple[Length, Length]
    """The matrix's shape: (rows, columns)."""
    rank: Length
    scale: Annotated[float, Field(allow_inf_nan=False)]
    dtype: FloatName
    """The factors' dtype once decoded, which may differ from the base's."""
    a: Stream
    b: Stream
    codec: FactorCodec

    @model_validator(mode="after")
    def _quantised_factors_are_single(self) -> LowRankEntry:
        if self.codec in CODE_BITS and self.dtype != "float32":
            raise ValueError(f"factors of the codec {self.codec} are float32 once decoded, found {self.dtype}")
        return self

    @property
    def nbytes(self) -> dict[Literal["a", "b"], int]:
        """Bytes of the factors themselves, once decoded."""
        row = self.rank * _ITEMSIZES[self.dtype]
        return {"a": row * self.shape[1], "b": row * self.shape[0]}

    @property
    def parameters(self) -> int:
        """Elements of both factors."""
        return self.rank * sum(self.shape)


class Tensors(_Strict):
    """Globs over tensor names: which tensors took part in the selection, and what happened to the others."""

    include: tuple[Glob, ...]
    exclude: tuple[Glob, ...]
    outside: Literal["reset", "keep"]


class Trial(_Strict):
    """A delta that calibration tried. The fields from `score` on are those of a delta that was judged."""

    method: str
    scope: Literal["global", "row"]
    fraction: float | None = None
    """Of the parameters kept; None: the method counts no parameters."""
    codec: Codec
    fitted: bool = False
    """Whether kept values were fitted to the choosing part's texts."""
    bytes: Size
    distance: float | None = None
    """How far its answers to the choosing part are from the fine-tune's. None: it answered with NaN or infinity, or
    a record of an earlier release."""
    score: float | None = None
    lost: Size | None = None
    """Judging examples that only the fine-tune answers right."""
    won: Size | None = None
    """Judging examples that only the delta answers right. Of language models, answers are not counted."""
    bound: float | None = None
    """The score falls by at most this, a perplexity rises by at most this share of itself, with the
    confidence of the record, looking at this delta alone."""


class Reading(_Strict):
    """How long examples were read when a language model was calibrated. What is promised is of text that is read so."""

    longest: Length
    """Most tokens that were read at once."""
    cut: Size
    """Prompts with completions, and chats, that lost their end."""
    divided: Size
    """Whole texts that were read in parts, each without the parts before it."""


class Calibration(_Strict):
    """How the budget was chosen, and what is promised of the delta."""

    metric: Metric
    examples: Size
    """Examples that judged; none of them had a part in choosing."""
    tokens: Size | None = None
    """Of the judging texts, those that a language model was judged on; None: answers were judged."""
    reading: Reading | None = None
    """How the examples of a language model were read; None: answers were judged, or a record of an earlier version."""
    choosing: Size = 0
    """Examples that chose between deltas of a size. Kept values were fitted to examples of the same part."""
    tolerance: float | None
    """How far the score was allowed to fall, or what share a perplexity was allowed to rise by; None: a size was asked
    for."""
    confidence: float | None
    """The probability that the promise is kept. None: a record of an earlier release, which promised nothing."""
    promised: float | None
    """On all text like the examples, the score falls by at most this, or a perplexity rises by this share at most."""
    tuned_score: float
    score: float
    base_score: float | None = None
    """Of the base itself, where a language model was judged; None: it does not take the texts, answers were judged, or
    a record of an earlier version."""
    needed: Size | None = None
    """About how many judging examples would promise the next smaller delta, if it loses what it lost here."""
    chosen: Size | None = None
    """The place of the written delta in `tried`. None: a record of an earlier release."""
    tried: tuple[Trial, ...]

    def score_at(self, loss: float) -> float:
        """The score of a delta that loses this much."""
        return self.tuned_score * (1 + loss) if self.metric == "perplexity" else self.tuned_score - loss

    def loss_at(self, score: float) -> float:
        """What a delta of this score loses."""
        return score / self.tuned_score - 1 if self.metric == "perplexity" else self.tuned_score - score

    @model_validator(mode="after")
    def _chose_what_was_tried(self) -> Calibration:
        if self.chosen is not None and self.chosen >= len(self.tried):
            raise ValueError(f"delta {self.chosen} is said to be chosen of {len(self.tried)} that were tried")
        return self

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_releases(cls, plain: Any) -> Any:
        """Earlier records gave a confidence from the very examples that had chosen the delta; it promises nothing."""
        if not isinstance(plain, dict) or "promised" in plain:
            return plain
        return {**plain, "confidence": None, "promised": None}


class Distilled(_Strict):
    """How the delta's own numbers were trained (`ken_core.distillation`)."""

    steps: Length
    texts: Length
    """Texts that were trained on."""
    held_out: Size
    """Texts that the divergences were measured on; 0: too few to hold any out, so those that were trained on."""
    before: Divergence
    """Divergence of the pruned model's answers from the fine-tune's (`ken_core.divergence`) before training."""
    after: Divergence


class Budget(_Strict):
    scope: Literal["global", "row"]
    fraction: float | None = None
    k: int | None = None
    energy: float | None = None
    nbytes: Size | None = None


class Parent(_Strict):
    """A delta that another one was merged from, by the sha256 of its file."""

    digest: Sha256
    weight: Annotated[float, Field(allow_inf_nan=False)]


class Merged(_Strict):
    """The deltas that a delta was merged from, and the recipe (`ken_core.merge_recipe`)."""

    method: MergeMethod
    density: Annotated[float, Field(gt=0, le=1)]
    normalize: bool
    """Whether merged shifts were divided by the sum of their weights' sizes."""
    seed: int
    parents: Annotated[tuple[Parent, ...], Field(min_length=1, max_length=MOST_PARENTS)]
    head: Annotated[int, Field(ge=0)]
    """The place among the parents of the one whose head the delta has."""

    @model_validator(mode="after")
    def _head_is_a_parents(self) -> Merged:
        if self.head >= len(self.parents):
            raise ValueError(f"the head is that of parent {self.head}; there are {len(self.parents)}, counted from 0")
        return self


class Base(_Strict):
    name: str
    fingerprint: Sha256


class Manifest(_Strict):
    """A delta's description of itself. Counts are of elements, sizes are in bytes. There is no timestamp."""

    format: int
    creator: str
    base: Base
    architecture: str
    kind: str
    method: str
    budget: Budget
    seed: int
    tensors: Tensors | None = None
    """None: all tensors took part."""
    codec: Codec
    calibration: Calibration | None = None
    adapter: Adapter | None = None
    """The kind of peft adapter that the delta was imported from; None: it was extracted from a fine-tune."""
    fitted: Size | None = None
    """How many texts the kept values were fitted to (`ken_core.scales`), 0 for texts of random tokens; None: they were
    not fitted."""
    distilled: Distilled | None = None
    """How the delta's numbers were trained to give the fine-tune's answers; None: they were not."""
    merged: Merged | None = None
    """What the delta was merged from; None: it was made of one fine-tune or adapter."""
    candidates: Size
    """Elements of the backbone tensors that fine-tuning changed, among which the method chose."""
    backbone_parameters: Size = Field(alias="backbone")
    """All elements of the base's backbone. The JSON calls them ``backbone``."""
    config: dict[str, Any]
    embedding: Embedding | None = None
    """How token vectors become one vector; None: the fine-tune's folder did not say, or the task has a head."""
    generation: Annotated[dict[SettingName, JsonValue], Field(max_length=128)] | None = None
    """How the task generates, as generation_config.json has it; None: as its base does, or it generates nothing."""
    sparse: dict[Name, SparseEntry]
    lowrank: dict[Name, LowRankEntry] = {}
    dense: dict[Name, WholeEntry]
    head: dict[Name, WholeEntry]
    projections: dict[Name, WholeEntry] = {}
    """The weights of the embedding's dense modules, by `Embedding.shapes`."""
    files: dict[Literal["tokenizer.json", "tokenizer_config.json"], FileEntry]

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_formats(cls, plain: Any) -> Any:
        """Up to format 3, a manifest had one pooling and whether vectors are scaled."""
        if not isinstance(plain, dict) or plain.get("format") not in (2, 3):
            return plain
        kept = {key: value for key, value in plain.items() if key not in ("pooling", "normalize")}
        if plain.get("pooling") is None or plain.get("kind") != "feature-extraction":
            return kept
        modules = ["normalize"] if plain.get("normalize") else []
        return {**kept, "embedding": {"pooling": [plain["pooling"]], "modules": modules}}

    @model_validator(mode="after")
    def _embedding_has_its_weights(self) -> Manifest:
        if self.embedding is not None and self.kind != "feature-extraction":
            raise ValueError(f"a {self.kind} task gives no embeddings")
        expected = {} if self.embedding is None else self.embedding.shapes
        found = {name: entry.shape for name, entry in self.projections.items()}
        if found != expected:
            raise ValueError(f"the projections have the shapes {found}, expected {expected}")
        if odd := sorted(n for n, e in self.projections.items() if e.dtype not in get_args(FloatName)):
            raise ValueError(
                f"the projection {odd[0]!r} is of {self.projections[odd[0]].dtype}; expected a float dtype"
            )
        return self

    @model_validator(mode="after")
    def _only_language_models_generate(self) -> Manifest:
        if self.generation is not None and self.kind != "text-generation":
            raise ValueError(f"a {self.kind} task generates nothing; found settings for it")
        if is_deeper(self.generation, _DEEPEST_SETTING):
            raise ValueError(f"settings of generation are nested in more than {_DEEPEST_SETTING} levels")
        return self

    @model_validator(mode="after")
    def _labels_and_kind_make_sense(self) -> Manifest:
        if self.kind != task_kind(self.architecture):
            raise ValueError(f"kind {self.kind!r} does not go with architecture {self.architecture!r}")
        labels = self.config.get("id2label")
        if labels is not None and not (
            isinstance(labels, dict)
            and set(labels) == {str(i) for i in range(len(labels))}
            and all(isinstance(v, str) for v in labels.values())
        ):
            raise ValueError("config.id2label must map '0', '1', … to names")
        return self

    def plain(self) -> dict[str, Any]:
        """The manifest as plain JSON, for the file and the store."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def whole(self) -> dict[str, dict[Name, WholeEntry]]:
        """Tensors that are stored in full, by the part they belong to: ``dense``, ``head`` or ``projections``."""
        return {"dense": self.dense, "head": self.head, "projections": self.projections}

    @property
    def selected(self) -> int:
        """Elements that the method chose, in all sparse tensors."""
        return sum(e.selected for e in self.sparse.values())

    @property
    def stored(self) -> int:
        """Elements that are in the file, in all sparse tensors."""
        return sum(e.stored for e in self.sparse.values())

    @property
    def labels(self) -> list[str]:
        """Names of labels in the order of the logits; empty if the kind has none."""
        if self.kind not in ("text-classification", "token-classification"):
            return []
        labels = self.config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        return [str(labels[k]) for k in sorted(labels, key=int)]


def task_kind(architecture: str) -> str:
    """``BertForSequenceClassification`` -> ``text-classification``; the architecture itself if it is unknown."""
    return next((kind for suffix, kind in TASK_KINDS.items() if architecture.endswith(suffix)), architecture)
