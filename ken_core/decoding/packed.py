"""One pass for chunks of many sequences, one behind the other in a single row, without padding.

The backbone is Transformers' own code. Only its attention is replaced for the time of the pass, by Transformers' own
registry of attention functions: each chunk attends to its own sequence, whose keys and values are kept here. Everything
else in a decoder works on each token by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.generic import ModelOutput

from ken_core.decoding.decoder import Chunk
from ken_core.decoding.key_values import BLOCK, KeyValues
from ken_core.kernels import decode_attention

_NAME = "ken_packed"
_Placed = tuple[int, Chunk[KeyValues]]


@dataclass
class _Pass:
    """What the attention of one pass works on.

    Attributes:
        chunks: with the place of each one's first token in the pass.
        singles, longer: those of one token, and the others.
        windows: the sliding window that each layer asked for; None: it sees everything before.
    """

    chunks: Sequence[_Placed]
    singles: Sequence[_Placed]
    longer: Sequence[_Placed]
    windows: dict[int, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, chunks: Sequence[Chunk[KeyValues]]) -> _Pass:
        starts = list(accumulate((len(chunk.ids) for chunk in chunks), initial=0))[:-1]
        placed = list(zip(starts, chunks, strict=True))
        singles = [one for one in placed if len(one[1].ids) == 1]
        return cls(placed, singles, [one for one in placed if len(one[1].ids) > 1])


_of_thread = threading.local()


class PackedDecoder:
    """Decodes chunks of any sequences in one pass.

    Args:
        backbone: whose attention is Transformers' `sdpa`.
        token_nbytes: bytes that a token's keys and values take.
    """

    packs = True
    block = BLOCK

    def __init__(self, backbone: PreTrainedModel, token_nbytes: int = 0) -> None:
        self._backbone = backbone
        self.token_nbytes = token_nbytes
        self.windows: dict[int, int | None] = {}

    def start(self) -> KeyValues:
        return KeyValues()

    def step(self, chunks: Sequence[Chunk[KeyValues]]) -> ModelOutput:
        output = self.run(chunks)
        ends = torch.tensor([len(c.ids) for c in chunks], device=output[0].device).cumsum(0) - 1
        return type(output)(last_hidden_state=output[0][:, ends])

    def run(self, chunks: Sequence[Chunk[KeyValues]]) -> ModelOutput:
        """As `step`, but with the output for all tokens, (1, tokens, width), chunk behind chunk."""
        device = self._backbone.device
        ids = torch.tensor([[token for chunk in chunks for token in chunk.ids]], device=device)
        places = [place for c in chunks for place in range(c.past.length, c.past.length + len(c.ids))]
        with _attending(self._backbone, _Pass.of(chunks)) as running:
            output: ModelOutput = self._backbone(
                input_ids=ids,
                position_ids=torch.tensor([places], device=device),
                use_cache=False,
                return_dict=True,
            )
        self.windows = running.windows
        for chunk in chunks:
            chunk.past.advance(len(chunk.ids))
        return output


@contextmanager
def _attending(backbone: PreTrainedModel, running: _Pass) -> Iterator[_Pass]:
    """Within it, the backbone's attention is `_attend`."""
    configs = _configs(backbone)
    usual = [config._attn_implementation_internal for config in configs]
    _of_thread.running = running
    try:
        for config in configs:
            config._attn_implementation_internal = _NAME
        yield running
    finally:
        for config, name in zip(configs, usual, strict=True):
            config._attn_implementation_internal = name
        _of_thread.running = None


def _configs(backbone: PreTrainedModel) -> list[Any]:
    """The configs that modules of a backbone look their attention up in, each once."""
    found = {id(m.config): m.config for m in backbone.modules() if getattr(m, "config", None) is not None}
    return list(found.values())


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention function of a packed pass: (1, heads, tokens, size) in, (1, tokens, heads, size) out."""
    if attention_mask is not None or position_bias is not None:  # the registered mask is none
        raise NotImplementedError(f"the attention of {type(module).__name__} has a mask of its own")
    running: _Pass = _of_thread.running
    layer: int = module.layer_idx  # type: ignore[assignment]  # every attention that keeps keys has one
    running.windows[layer] = sliding_window
    out = query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
    capped = others.get("softcap") is not None  # which torch's attention refuses by name
    together = bool(running.singles) and not capped and decode_attention.takes(query, key, value)
    if together:
        own = key[:, :, :1], value[:, :, :1]
        places = [_place(start, chunk.past, layer, own, sliding_window) for start, chunk in running.singles]
        decode_attention.attend(out, query, key, value, places, scaling)
    for start, chunk in running.longer if together else running.chunks:
        end = start + len(chunk.ids)
        keys, values = chunk.past.put(layer, key[:, :, start:end], value[:, :, start:end])
        mask, keys, values = _seen(chunk, keys, values, sliding_window)
        asked = query[:, :, start:end]
        out[:, start:end], _ = sdpa_attention_forward(
            module, asked, keys, values, mask, scaling=scaling, is_causal=mask is None and len(chunk.ids) > 1, **others
        )
    return out, None


def _place(
    start: int, past: KeyValues, layer: int, own: tuple[torch.Tensor, torch.Tensor], window: int | None
) -> decode_attention.Place:
    """Where the kernel finds what a single token sees; `own` are like its key and its value."""
    keys, values = past.buffers(layer, *own)
    return start, keys, values, _first_seen(past.length, window), past.length


def _seen(
    chunk: Chunk[KeyValues], keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Which keys each token of a chunk sees: a mask (1, 1, tokens, keys), or None for all of those before; and them."""
    before, tokens = chunk.past.length, len(chunk.ids)
    if tokens == 1:
        first = _first_seen(before, window)
        return None, keys[:, :, first:], values[:, :, first:]
    if before == 0 and (window is None or tokens <= window):
        return None, keys, values
    places = torch.arange(before, before + tokens, device=keys.device)[:, None]
    seen = torch.arange(before + tokens, device=keys.device)[None]
    mask = seen <= places
    if window is not None:
        mask &= seen > places - window
    return mask[None, None], keys, values


def _first_seen(before: int, window: int | None) -> int:
    """The first token that a token behind so many others sees."""
    return 0 if window is None else max(0, before + 1 - window)


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, lambda *_, **__: None)
