"""Text to token ids, and rows of ids to one padded batch."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PretrainedConfig

from ken_core.checkpoint import TOKENIZER_FILES, Checkpoint
from ken_core.errors import CheckpointError

Input = str | tuple[str, str]
_LONGEST = 1 << 16
_OFFSET_BY_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


@dataclass(frozen=True)
class Encoded:
    """One input's token ids (and segment ids where the model takes them)."""

    ids: Sequence[int]
    type_ids: Sequence[int] | None
    truncated: bool

    def __len__(self) -> int:
        return len(self.ids)


class Encoder:
    """A tokenizer fixed to one truncation length, safe to call from many threads at once.

    Args:
        base: gives the tokenizer files.
        config: of the task; its position count bounds the length.
        files: a task's own tokenizer files, which replace the base's.

    Raises:
        CheckpointError: the checkpoint has no fast tokenizer.
    """

    def __init__(self, base: Checkpoint, config: PretrainedConfig, files: Mapping[str, bytes]) -> None:
        tokenizer = _load(base, files)
        self._fast = tokenizer.backend_tokenizer
        if self._fast.get_vocab_size() <= len(tokenizer.all_special_tokens):
            raise CheckpointError(f"{base.folder} has no tokenizer; save one there with save_pretrained")
        self.max_length = _max_length(tokenizer.model_max_length, config)
        self.truncation_side: str = tokenizer.truncation_side
        self._fast.no_padding()
        self._fast.enable_truncation(self.max_length, direction=tokenizer.truncation_side)
        self._with_types = "token_type_ids" in tokenizer.model_input_names
        self.pad_id = tokenizer.pad_token_id or 0

    def __call__(self, inputs: Sequence[Input]) -> list[Encoded]:
        """Encode texts or pairs of texts, with special tokens, truncated to `max_length`."""
        return [
            Encoded(e.ids, e.type_ids if self._with_types else None, bool(e.overflowing))
            for e in self._fast.encode_batch(list(inputs))
        ]


def collate(rows: Sequence[Encoded], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Pad rows to the longest: int64 tensors of shape (rows, longest) by model input name."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    attention = torch.zeros((len(rows), longest), dtype=torch.int64)
    types = torch.zeros((len(rows), longest), dtype=torch.int64) if rows[0].type_ids is not None else None
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row.ids)
        attention[i, : len(row)] = 1
        if types is not None and row.type_ids is not None:
            types[i, : len(row)] = torch.tensor(row.type_ids)
    batch = {"input_ids": ids, "attention_mask": attention}
    if types is not None:
        batch["token_type_ids"] = types
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _load(base: Checkpoint, files: Mapping[str, bytes]):  # type: ignore[no-untyped-def]  # transformers' own types vary
    try:
        if not files:
            return AutoTokenizer.from_pretrained(base.folder)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps({"model_type": base.config.model_type}))
            for name in TOKENIZER_FILES:
                data = files.get(name) or base.tokenizer_file(name)
                if data is not None:
                    (Path(folder) / name).write_bytes(data)
            return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{base.folder} has no usable tokenizer: {error}") from error


def _max_length(declared: int, config: PretrainedConfig) -> int:
    """The shorter of what the tokenizer declares and the positions the model has."""
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    if config.model_type in _OFFSET_BY_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    return int(min(declared, positions, _LONGEST))
