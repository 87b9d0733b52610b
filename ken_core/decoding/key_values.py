"""The keys and values of one sequence, in buffers of our own."""

from __future__ import annotations

import torch

BLOCK = 64
"""Tokens by which buffers grow."""


class KeyValues:
    """Keys and values of a sequence's tokens, one pair of buffers a layer, each (1, heads, capacity, size of a head).

    A pass puts a chunk's keys and values behind those that are there (`put`). They count only once the pass has ended
    (`advance`), so a pass that fails leaves the sequence as it was.

    Attributes:
        length: tokens whose keys and values are there.
    """

    def __init__(self) -> None:
        self.length = 0
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(keys.nbytes + values.nbytes for keys, values in self._layers.values())

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a chunk's keys and values, each (1, heads, tokens, size), behind those of the tokens before.

        Returns:
            Keys and values of all tokens, the chunk's included. Views: the next `put` may change what lies behind them.
        """
        end = self.length + keys.shape[2]
        found = self.buffers(layer, keys, values)
        for buffer, chunk in zip(found, (keys, values), strict=True):
            buffer[:, :, self.length : end].copy_(chunk)
        return found[0][:, :, :end], found[1][:, :, :end]

    def buffers(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers of keys and values, with room for a chunk like these behind the tokens that are there."""
        end = self.length + keys.shape[2]
        found = self._layers.get(layer)
        if found is None or found[0].shape[2] < end:
            old = found or (None, None)
            found = (_grown(old[0], keys, self.length, end), _grown(old[1], values, self.length, end))
            self._layers[layer] = found
        return found

    def copied(self, tokens: int) -> KeyValues:
        """Another sequence's keys and values, which begin with the first tokens of this one."""
        made = KeyValues()
        for layer, (keys, values) in self._layers.items():
            buffers = (_grown(buffer, buffer, tokens, tokens) for buffer in (keys, values))
            made._layers[layer] = (next(buffers), next(buffers))
        made.length = tokens
        return made

    def advance(self, tokens: int) -> None:
        """Count a chunk whose keys and values every layer has put."""
        self.length += tokens


def in_blocks(tokens: int) -> int:
    """How many tokens the buffers for so many have room for."""
    return -(-tokens // BLOCK) * BLOCK


def _grown(old: torch.Tensor | None, like: torch.Tensor, length: int, end: int) -> torch.Tensor:
    _, heads, _, size = like.shape
    made = like.new_empty((1, heads, in_blocks(end), size))
    if old is not None:
        made[:, :, :length].copy_(old[:, :, :length])
    return made
