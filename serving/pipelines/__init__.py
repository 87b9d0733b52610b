"""Task kinds, one file each. A new kind is a `Pipeline` in a file of its own, named in `PIPELINES`."""

from __future__ import annotations

from serving.errors import UnsupportedKindError
from serving.pipelines.base import Parameters, Pipeline
from serving.pipelines.feature_extraction import FeatureExtraction
from serving.pipelines.text_classification import TextClassification

PIPELINES: dict[str, Pipeline] = {p.kind: p for p in (TextClassification(), FeatureExtraction())}

__all__ = ["PIPELINES", "Parameters", "Pipeline", "pipeline_for"]


def pipeline_for(kind: str) -> Pipeline:
    """Raises `UnsupportedKindError` for a kind without a pipeline."""
    if kind not in PIPELINES:
        raise UnsupportedKindError(f"tasks of kind {kind!r} are not served; served are {', '.join(sorted(PIPELINES))}")
    return PIPELINES[kind]
