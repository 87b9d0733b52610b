"""A task on the device, ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ken_core import Attached
from ken_core.heads import Grafted
from serving.pipelines.base import TaskSpec
from serving.pipelines.text_generation import TEXT_GENERATION

DeviceTier = Literal["packed", "materialised"]
"""Packed: mask words and values, activated by an exchange. Materialised: full tensors, activated by re-pointing."""


@dataclass(eq=False)
class Loaded:
    """A task ready to run: its delta on the device, its model around the shared backbone, its tokenizer.

    Attributes:
        digest: of the task's delta. A delta on trial has another name in its place.
        head: the kind of head (`Manifest.kind`).
        kind: the kind that the task answers, unless a request asks for another kind of the same head.
        unmixed: why its rows cannot run beside those of other tasks; empty where they can.
        prepare_seconds: time to prepare the task, without waiting for room.
        users: requests that hold the task on the device.
    """

    digest: str
    attached: Attached
    model: Grafted
    head: str
    kind: str
    spec: TaskSpec
    unmixed: str = ""
    prepare_seconds: float = 0.0
    users: int = 0

    def take_over(self, made: Loaded) -> None:
        """Have the values of the same task that were prepared anew. On a thread that has the weights alone."""
        self.attached, self.model, self.unmixed = made.attached, made.model, made.unmixed

    @property
    def nbytes(self) -> int:
        """Bytes that the task takes in its tier."""
        return self.attached.nbytes + self.spec.nbytes

    @property
    def mixes(self) -> bool:
        """Whether it can run beside other tasks, in one pass."""
        return not self.unmixed and not self.attached.spoiled and self.model.splits

    @property
    def mixes_in_batches(self) -> bool:
        """The same of rows that ask for one answer each. A language model's head would read the base's embedding there,
        where decode steps give it the task's own."""
        return self.mixes and self.head != TEXT_GENERATION

    @property
    def tier(self) -> DeviceTier:
        return "materialised" if self.attached.materialised else "packed"
