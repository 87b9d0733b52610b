"""A question to try on a task: the body of a prediction, by what the task's delta says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT = "How far is it to Denver?"
_PASSAGE = "Denver is 200 miles away."


def question_for(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a prediction that a task answers in the kind that its head was trained for.

    Args:
        manifest: of the task's delta, as `Deltas.manifest` gives it.
    """
    kind = manifest.get("kind")
    if kind == "question-answering":
        return {"inputs": {"question": _TEXT, "context": _PASSAGE}}
    labels = [str(label).lower() for label in (manifest.get("config", {}).get("id2label") or {}).values()]
    if kind == "text-classification" and len(labels) == 1:
        return {"inputs": {"query": _TEXT, "texts": [_PASSAGE, "I like rain."]}, "kind": "rerank"}
    if kind == "text-classification" and any(label.startswith("entail") for label in labels):
        asked = {"candidate_labels": ["travel", "weather"]}
        return {"inputs": _TEXT, "kind": "zero-shot-classification", "parameters": asked}
    return {"inputs": _TEXT}
