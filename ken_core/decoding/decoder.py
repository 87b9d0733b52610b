"""What decodes: a way to run chunks of several sequences through a backbone in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from transformers.utils.generic import ModelOutput


class Past(Protocol):
    """What a decoder keeps of a sequence's tokens."""

    @property
    def length(self) -> int:
        """Tokens that it has."""


P = TypeVar("P", bound=Past)


@dataclass(frozen=True)
class Chunk(Generic[P]):
    """The next tokens of a sequence: all of a prompt, a part of one, or the token that was chosen last.

    Attributes:
        ids: at least one.
        past: of the tokens before; the step adds these.
    """

    ids: Sequence[int]
    past: P


class Decoder(Protocol[P]):
    """Runs steps. Whoever calls it has the weights alone.

    Attributes:
        packs: whether the chunks of a step share one pass of the backbone. If so, pasts can be copied: they have a
            method `copied`.
        token_nbytes: bytes that a token's keys and values take.
        block: tokens by which what is kept of a sequence grows.
    """

    packs: bool
    token_nbytes: int
    block: int

    def start(self) -> P:
        """The past of a sequence without tokens."""

    def step(self, chunks: Sequence[Chunk[P]]) -> ModelOutput:
        """Run chunks of different sequences.

        Returns:
            The backbone's output for the last token of each chunk, (1, chunks, width) as `last_hidden_state`.

        Raises:
            Whatever the model raises. Then no past has changed, or it must not be used again: see `packs`; without
            packing, the pasts of the chunks are lost.
        """
