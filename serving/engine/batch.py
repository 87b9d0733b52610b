"""What runs at once: a batch is groups of rows, each group of one task."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from ken_core.tokenization import Encoded, collate
from serving.pipelines.base import Pipeline
from serving.tiers.loaded import Loaded


@dataclass(frozen=True)
class Group:
    """Rows that one kind asks of one task."""

    task: Loaded
    pipeline: Pipeline
    rows: Sequence[Encoded]

    @property
    def key(self) -> Hashable:
        """What the rows have in common, as the line knows them: rows of one key may be one group."""
        return self.task.digest, self.pipeline.kind

    @property
    def padded(self) -> int:
        """Tokens of the group alone, padding included."""
        return _padded(self.rows)

    def inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The rows padded to the longest of them: int64 tensors of shape (rows, tokens) by model input name."""
        return collate(self.rows, self.task.spec.encoder.pad_id, device)


@dataclass(frozen=True)
class Batch:
    """Groups of rows, of any tasks; none of them empty."""

    groups: Sequence[Group]

    @property
    def rows(self) -> list[Encoded]:
        """Of all groups, in their order."""
        return [row for group in self.groups for row in group.rows]

    @property
    def padded(self) -> int:
        """Tokens, padding included, if all rows are padded to the longest of the batch."""
        return _padded(self.rows)


def _padded(rows: Sequence[Encoded]) -> int:
    return len(rows) * max(map(len, rows))
