"""Merges in requests: the object that may stand where a body names a model, and which versions it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, WrapValidator

from ken_core.errors import MergeError
from ken_core.merge_recipe import MergeMethod, MergeRecipe
from serving.errors import InvalidInputError
from serving.incoming import Incoming
from serving.routing.merges import MOST_PARTS, MOST_WEIGHT, Merge, MergePart

Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,255}$")]
Weight = Annotated[float, Field(strict=True, ge=-MOST_WEIGHT, le=MOST_WEIGHT, allow_inf_nan=False)]


class MergedModel(Incoming):
    """Tasks of one kind, to be merged for this request: what fine-tuning changed for each, by weight."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"merge": {"trec": 0.7, "trec@canary": 0.3}, "head": "trec"}]},
    )

    merge: Annotated[dict[Version, Weight], Field(min_length=1, max_length=MOST_PARTS)] = Field(
        description="weight by task, task@alias or task@digest; a task alone is its live version, whatever its route"
    )
    head: str | None = Field(
        None, description="the one of them whose head, labels and tokenizer answer; by default the task of the path"
    )
    method: MergeMethod = Field("linear", description="how they are merged")
    density: float | None = Field(
        None,
        gt=0,
        le=1,
        description="how much of each task's changes is kept: with ties as many as this share of the model's "
        "parameters, with dare-linear and dare-ties this share of the changes; by default all; not for linear",
    )
    normalize: bool | None = Field(
        None, description="divide by the sum of the weights' sizes; by default only where signs are elected (ties)"
    )

    @property
    def names(self) -> list[str]:
        """The names of the tasks, without aliases and versions."""
        return [_task_of(version) for version in self.merge]

    def head_beside(self, path: str | None) -> str:
        """The one of the tasks whose head answers.

        Args:
            path: the task that the path names; None: the path names no task.

        Raises:
            InvalidInputError: neither the body nor the path says which, or they do not agree, or it is none of them.
        """
        head = self.head or path or (next(iter(self.merge)) if len(self.merge) == 1 else None)
        if head is None:
            raise InvalidInputError("expected one of the tasks that are merged: its head answers", at="model.head")
        if path is not None and _task_of(head) != _task_of(path):
            raise InvalidInputError(f"found {head!r}, but the path names {path!r}; name one of them", at="model.head")
        if head not in self.merge:
            raise InvalidInputError(
                f"{head!r}, whose head answers, is none of the tasks that are merged; name it there, with the weight 0 "
                "if only its head is wanted",
                at="model.merge",
            )
        return head

    def of_versions(self, digests: Sequence[str], head: str) -> Merge:
        """The merge that is meant.

        Args:
            digests: of the versions that `merge` names, in its order.
            head: one of the names in `merge`.

        Raises:
            InvalidInputError: two names mean one version, or the method does not take the density.
        """
        found = dict(zip(self.merge, digests, strict=True))
        if len(set(digests)) < len(digests):
            twice = next(digest for digest in digests if digests.count(digest) > 1)
            same = " and ".join(repr(name) for name, digest in found.items() if digest == twice)
            raise InvalidInputError(f"{same} are the same version; give it one weight", at="model.merge")
        parts = [
            MergePart(digest, weight + 0.0, name)  # of the two zeros, one
            for name, digest, weight in zip(self.names, digests, self.merge.values(), strict=True)
        ]
        return Merge(tuple(sorted(parts, key=lambda part: part.digest)), found[head], self._recipe())

    def _recipe(self) -> MergeRecipe:
        density = 1.0 if self.density is None else self.density
        try:
            return MergeRecipe(self.method, density, self.normalize)
        except MergeError as error:
            raise InvalidInputError(str(error), at="model.density") from None


def _task_of(version: str) -> str:
    return version.partition("@")[0]


def _name_or_merge(plain: Any, _: object) -> str | MergedModel:
    """One refusal, of what was meant: a union would refuse by both forms."""
    return MergedModel.model_validate(plain) if isinstance(plain, Mapping) else _NAME.validate_python(plain)


_NAME = TypeAdapter(str)

ModelOrMerge = Annotated[str | MergedModel, WrapValidator(_name_or_merge)]
"""The name of a task, or a merge of tasks."""
