"""What a delta says about itself: the JSON in its file's metadata, checked before anything else is read."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ken_core.codec import Codec
from ken_core.positions import Coding

FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)
"""3 added low-rank entries and the kind of adapter a delta was imported from."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-]+$", max_length=512)]
DTypeName = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Size = Annotated[int, Field(ge=0, lt=1 << 40)]
FloatName = Literal["float64", "float32", "float16", "bfloat16"]
Metric = Literal["accuracy", "agreement"]
Adapter = Literal["lora", "shira"]
Length = Annotated[int, Field(gt=0, lt=1 << 40)]
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


class SparseEntry(_Strict):
    """Positions (bit mask) and fine-tuned values of a tensor the base has too."""

    shape: tuple[Size, ...]
    dtype: DTypeName
    selected: Size
    """Elements the method chose."""
    stored: Size
    """Those of them whose bits differ from the base's; only they are in the file."""
    mask: Stream
    mask_coding: Coding = "bitmap"
    values: Stream


class WholeEntry(_Strict):
    """A tensor stored in full: outside the backbone (head), of another shape, or absent from the base (dense)."""

    shape: Annotated[tuple[Length, ...], Field(max_length=8)]
    dtype: DTypeName
    data: Stream
    codec: Literal["raw", "zstd"] = "raw"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor itself."""
        return prod(self.shape) * _ITEMSIZES[self.dtype]


class LowRankEntry(_Strict):
    """A shift `scale * b @ a` of a whole matrix the base has too; `a` is (rank, columns), `b` (rows, rank)."""

    shape: tuple[Length, Length]
    """Of the matrix: (rows, columns)."""
    rank: Length
    scale: Annotated[float, Field(allow_inf_nan=False)]
    dtype: FloatName
    """Of the factors; it need not be the base's."""
    a: Stream
    b: Stream
    codec: Literal["raw", "zstd"]

    @property
    def nbytes(self) -> dict[Literal["a", "b"], int]:
        """Bytes of the factors themselves."""
        row = self.rank * _ITEMSIZES[self.dtype]
        return {"a": row * self.shape[1], "b": row * self.shape[0]}

    @property
    def parameters(self) -> int:
        """Elements of both factors."""
        return self.rank * sum(self.shape)


class Tensors(_Strict):
    """Globs over tensor names: which took part in the selection, and what became of the others."""

    include: tuple[Glob, ...]
    exclude: tuple[Glob, ...]
    outside: Literal["reset", "keep"]


class Trial(_Strict):
    """One delta that calibration measured."""

    method: str
    scope: Literal["global", "row"]
    fraction: float
    codec: Codec
    bytes: Size
    score: float


class Calibration(_Strict):
    """How the budget was chosen: the smallest delta whose score is within `tolerance` of the fine-tune's."""

    metric: Metric
    examples: Size
    tolerance: float
    tuned_score: float
    score: float
    confidence: float
    """That the loss on all text like these examples is at most the tolerance."""
    tried: tuple[Trial, ...]


class Budget(_Strict):
    scope: Literal["global", "row"]
    fraction: float | None = None
    k: int | None = None


class Base(_Strict):
    name: str
    fingerprint: Sha256


class Manifest(_Strict):
    """A delta's own description. Counts are elements, sizes bytes; there is no timestamp."""

    format: int
    creator: str
    base: Base
    architecture: str
    kind: str
    method: str
    budget: Budget
    seed: int
    tensors: Tensors | None = None
    """None: all."""
    codec: Codec
    calibration: Calibration | None = None
    adapter: Adapter | None = None
    """The kind of peft adapter it was imported from; None: extracted from a fine-tune."""
    candidates: Size
    """Elements of the backbone tensors fine-tuning changed, among which the method chose."""
    backbone: Size
    """All elements of the base's backbone."""
    config: dict[str, Any]
    pooling: Literal["mean", "cls", "last"] | None = None
    normalize: bool = False
    """Whether pooled vectors are scaled to length 1."""
    sparse: dict[Name, SparseEntry]
    lowrank: dict[Name, LowRankEntry] = {}
    dense: dict[Name, WholeEntry]
    head: dict[Name, WholeEntry]
    files: dict[Literal["tokenizer.json", "tokenizer_config.json"], Stream]

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

    @property
    def selected(self) -> int:
        return sum(e.selected for e in self.sparse.values())

    @property
    def stored(self) -> int:
        return sum(e.stored for e in self.sparse.values())

    @property
    def labels(self) -> list[str]:
        """Label names in the order of the logits, empty where the kind has none."""
        if self.kind not in ("text-classification", "token-classification"):
            return []
        labels = self.config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        return [str(labels[k]) for k in sorted(labels, key=int)]


def task_kind(architecture: str) -> str:
    """``BertForSequenceClassification`` -> ``text-classification``; the architecture itself where unknown."""
    return next((kind for suffix, kind in TASK_KINDS.items() if architecture.endswith(suffix)), architecture)
