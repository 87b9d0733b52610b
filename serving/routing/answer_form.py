"""What callers of a task can rely on in its answers, whatever the texts: compared before another version gives them.

Versions may differ in method, budget and quality. The order in which a head has its labels is no part of the form
either: every protocol names labels, and puts them in the order of their scores. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ken_core.embedding import Embedding
    from ken_core.manifest import Manifest

_SHOWN = 5
_LONGEST = 40


def score_function(problem_type: str | None, labels: int | None) -> str:
    """What makes scores of a text classifier's logits unless a request says otherwise.

    Args:
        problem_type: of the model's config.
        labels: how many the head has.
    """
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"


@dataclass(frozen=True)
class AnswerForm:
    """The form of a version's answers.

    Attributes:
        kind: what it answers unless a request asks for another kind.
        labels: their names, sorted; empty where the kind has none.
        scores: what makes scores of logits (``softmax``, ``sigmoid``, ``none``); None where a request cannot tell.
        vectors: how wide and how long a text's is, in words; None where there is not one vector a text.
        base: fingerprint of the base it was made against. One server serves versions of one base.
    """

    kind: str
    labels: tuple[str, ...] = ()
    scores: str | None = None
    vectors: str | None = None
    base: str = field(default="", compare=False)

    def difference(self, other: AnswerForm, ours: str, theirs: str) -> str:
        """What callers would notice if the other answered in place of this, in words; empty where there is nothing.

        Args:
            ours, theirs: what to call the two versions.
        """
        if self.base and other.base and self.base != other.base:
            return f"base: {self.base[:_LONGEST]} in {ours}, {other.base[:_LONGEST]} in {theirs}"
        if self.kind != other.kind:
            return f"kind: {self.kind} in {ours}, {other.kind} in {theirs}"
        told = [_labels(self, other, ours, theirs)]
        if self.scores != other.scores:
            told.append(f"scores: {self.scores} in {ours}, {other.scores} in {theirs}")
        if self.vectors != other.vectors:
            told.append(f"vectors: {self.vectors} in {ours}, {other.vectors} in {theirs}")
        return "; ".join(filter(None, told))


FormOf = Callable[[str, "Manifest"], AnswerForm]
"""The form of a delta's answers, from the kind that it answers by itself and its manifest."""


def plain_form(kind: str, manifest: Manifest) -> AnswerForm:
    """The kind and the labels are all that callers rely on."""
    return AnswerForm(kind, tuple(sorted(manifest.labels)), base=manifest.base.fingerprint)


def scored_form(kind: str, manifest: Manifest) -> AnswerForm:
    """Callers rely on what makes the labels' scores, too."""
    function = score_function(manifest.config.get("problem_type"), len(manifest.labels))
    return replace(plain_form(kind, manifest), scores=function)


def embedding_form(kind: str, manifest: Manifest) -> AnswerForm:
    """Callers rely on how wide and how long a text's vector is."""
    vectors = None if manifest.embedding is None else _vectors(manifest.embedding)
    return replace(plain_form(kind, manifest), vectors=vectors)


def _vectors(embedding: Embedding) -> str:
    projected = [dense.outputs for dense in embedding.dense.values()]
    width, poolings = embedding.dimensions or (projected[-1] if projected else None), len(embedding.pooling)
    wide = f"{width} numbers" if width else "as wide as the model" if poolings == 1 else f"{poolings} times as wide"
    return f"{wide}, {'scaled to length 1' if embedding.normalizes else 'not scaled'}"


def _labels(first: AnswerForm, second: AnswerForm, ours: str, theirs: str) -> str:
    one, other = Counter(first.labels), Counter(second.labels)  # a head may give one name to two labels
    found = {ours: one - other, theirs: other - one}
    told = [f"only in {which}: {_listed(sorted(names.elements()))}" for which, names in found.items() if names]
    return f"labels: {'; '.join(told)}" if told else ""


def _listed(names: list[str]) -> str:
    shown = [repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…") for name in names[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
