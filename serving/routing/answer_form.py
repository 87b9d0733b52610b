"""The form of a task's answers: what callers rely on, whatever the texts. Pure.

Forms are compared before another version answers in place of the live one. Versions may differ in method, budget and
quality. The order of a head's labels is no part of the form either, because every protocol names labels and orders them
by score.
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
    """The function that makes scores of a text classifier's logits, unless a request asks for another one.

    Args:
        problem_type: from the model's config.
        labels: the number of the head's labels.
    """
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"


@dataclass(frozen=True)
class AnswerForm:
    """The form of a version's answers.

    Attributes:
        kind: the kind that the version answers, unless a request asks for another kind.
        labels: the names of labels, sorted; empty if the kind has none.
        scores: the function that makes scores of logits (``softmax``, ``sigmoid``, ``none``); None for kinds whose
            scores do not depend on the config.
        vectors: the width and length of a text's vector, in words; None if the kind does not give one vector per text.
        base: the fingerprint of the delta's base. One server serves versions of one base.
    """

    kind: str
    labels: tuple[str, ...] = ()
    scores: str | None = None
    vectors: str | None = None
    base: str = field(default="", compare=False)

    def difference(self, other: AnswerForm, ours: str, theirs: str) -> str:
        """What callers would notice if the other version answered in place of this one; empty if nothing.

        Args:
            ours, theirs: names of the two versions in the text.
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
"""Gives the form of a delta's answers, from the kind that the delta answers by itself and its manifest."""


def plain_form(kind: str, manifest: Manifest) -> AnswerForm:
    """A form of kind and labels."""
    return AnswerForm(kind, tuple(sorted(manifest.labels)), base=manifest.base.fingerprint)


def scored_form(kind: str, manifest: Manifest) -> AnswerForm:
    """A form of kind, labels and the function that makes their scores."""
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
    one, other = Counter(first.labels), Counter(second.labels)  # two labels of a head may have one name
    found = {ours: one - other, theirs: other - one}
    told = [f"only in {which}: {_listed(sorted(names.elements()))}" for which, names in found.items() if names]
    return f"labels: {'; '.join(told)}" if told else ""


def _listed(names: list[str]) -> str:
    shown = [repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…") for name in names[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
