"""Task kinds, one file each. A new kind is a `Pipeline` in a file of its own, named in `PIPELINES`."""

from __future__ import annotations

from serving.errors import InvalidInputError, UnsupportedKindError
from serving.pipelines.base import Parameters, Pipeline
from serving.pipelines.feature_extraction import FeatureExtraction
from serving.pipelines.question_answering import QuestionAnswering
from serving.pipelines.rerank import Rerank
from serving.pipelines.sentence_embeddings import SentenceEmbeddings
from serving.pipelines.text_classification import TextClassification
from serving.pipelines.token_classification import TokenClassification
from serving.pipelines.zero_shot import ZeroShotClassification
from serving.routing.answer_form import own_kind

_ALL: tuple[Pipeline, ...] = (
    TextClassification(),
    ZeroShotClassification(),
    Rerank(),
    TokenClassification(),
    QuestionAnswering(),
    FeatureExtraction(),
    SentenceEmbeddings(),
)
PIPELINES: dict[str, Pipeline] = {pipeline.kind: pipeline for pipeline in _ALL}

__all__ = ["PIPELINES", "Parameters", "Pipeline", "default_kind", "pipeline_for"]


def default_kind(head: str, embeds: bool) -> str:
    """What a task answers unless a request asks for another kind: a backbone that says how it pools gives embeddings.

    Args:
        embeds: whether it says so.

    Raises:
        UnsupportedKindError: no kind reads such a head.
    """
    if head not in {p.head for p in PIPELINES.values()}:
        served = ", ".join(sorted({p.head for p in PIPELINES.values()}))
        raise UnsupportedKindError(f"tasks of kind {head!r} are not served; served are {served}")
    return own_kind(head, embeds)


def pipeline_for(kind: str, head: str) -> Pipeline:
    """The pipeline of a kind, if it reads such a head.

    Raises:
        InvalidInputError: it does not; those that do are named.
    """
    found = PIPELINES.get(kind)
    if found is None or found.head != head:
        able = ", ".join(sorted(p.kind for p in PIPELINES.values() if p.head == head))
        raise InvalidInputError(f"kind {kind!r} cannot be asked of a task with a {head} head, which answers {able}")
    return found
