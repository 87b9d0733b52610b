"""The table of task kinds. A new kind is an entry here and a file in `serving.pipelines`.

Nothing here needs torch, so the store and the command line can import it: the table names pipelines, but does not
import them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from serving.routing.agreement import (
    Compare,
    compare_answers,
    compare_candidates,
    compare_entities,
    compare_labels,
    compare_orders,
    compare_texts,
    compare_vectors,
)
from serving.routing.answer_form import AnswerForm, FormOf, embedding_form, plain_form, scored_form

if TYPE_CHECKING:
    from ken_core.manifest import Manifest


@dataclass(frozen=True)
class Column:
    """A part of a kind's outputs that can be given as a tensor of texts or numbers.

    Attributes:
        datatype: by its name in the Open Inference Protocol.
        rank: 1 for one value per input, 2 for a list of equal length per input.
        values: gives the values of all outputs, row by row.
    """

    name: str
    datatype: Literal["BYTES", "FP32"]
    rank: Literal[1, 2]
    values: Callable[[Sequence[Any]], Iterable[object]]


@dataclass(frozen=True)
class Kind:
    """A task kind, without the code that answers it. Its outputs have the form that `Pipeline.present` gives them.

    Attributes:
        module: a module in `serving.pipelines`; its `PIPELINE` answers questions of this kind.
        compare: compares a shadow's output with the output that was given.
        form: gives the form of a task's answers, if the task answers this kind by itself.
        columns: the parts of an output that can be given as tensors, beside all of it as JSON.
        listed: whether Hugging Face's protocol answers a single input with a list of one, as Hugging Face's own servers
            do.
    """

    module: str
    compare: Compare
    form: FormOf
    columns: tuple[Column, ...]
    listed: bool


_GENERATED = Column("generated_text", "BYTES", 1, lambda outputs: (o["generated_text"] for o in outputs))

KINDS: Mapping[str, Kind] = {
    "text-classification": Kind(
        module="text_classification",
        compare=compare_labels,
        form=scored_form,
        columns=(
            Column("label", "BYTES", 1, lambda outputs: (o[0]["label"] for o in outputs)),
            Column("score", "FP32", 1, lambda outputs: (o[0]["score"] for o in outputs)),
            Column("labels", "BYTES", 2, lambda outputs: (one["label"] for o in outputs for one in o)),
            Column("scores", "FP32", 2, lambda outputs: (one["score"] for o in outputs for one in o)),
        ),
        listed=True,
    ),
    "zero-shot-classification": Kind(
        module="zero_shot", compare=compare_candidates, form=plain_form, columns=(), listed=False
    ),
    "rerank": Kind(module="rerank", compare=compare_orders, form=plain_form, columns=(), listed=False),
    "token-classification": Kind(
        module="token_classification", compare=compare_entities, form=plain_form, columns=(), listed=False
    ),
    "question-answering": Kind(
        module="question_answering", compare=compare_answers, form=plain_form, columns=(), listed=False
    ),
    "text-generation": Kind(
        module="text_generation", compare=compare_texts, form=plain_form, columns=(_GENERATED,), listed=True
    ),
    "feature-extraction": Kind(
        module="feature_extraction", compare=compare_vectors, form=plain_form, columns=(), listed=True
    ),
    "sentence-embeddings": Kind(
        module="sentence_embeddings",
        compare=compare_vectors,
        form=embedding_form,
        columns=(Column("embedding", "FP32", 2, chain.from_iterable),),
        listed=True,
    ),
}


def own_kind(head: str, embeds: bool) -> str:
    """The kind that a head answers by itself. A backbone that says how it pools gives one vector per text.

    Args:
        head: the kind of head (`Manifest.kind`).
        embeds: whether the task says how it pools.
    """
    return "sentence-embeddings" if head == "feature-extraction" and embeds else head


def answer_form(manifest: Manifest) -> AnswerForm:
    """The form of a delta's answers, even if no kind of this server reads the delta's head."""
    kind = own_kind(manifest.kind, manifest.embedding is not None)
    form = KINDS[kind].form if kind in KINDS else plain_form
    return form(kind, manifest)
