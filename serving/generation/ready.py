"""What a step computes of continuations, ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ken_core.decoding.choice import AnyDecoder
from ken_core.decoding.decoder import Chunk
from serving.generation.asked import Asked, Asking
from serving.generation.schedule import Part


@dataclass(frozen=True)
class Ready:
    """What a step computes of one continuation, ready to run."""

    of: Asking
    tokens: int
    chunk: Chunk  # type: ignore[type-arg]

    @property
    def wanted(self) -> bool:
        """Whether the step computes its last known token, and so gives the next one."""
        return self.of.left == self.tokens


def made_ready(part: Part[Asked], decoder: AnyDecoder) -> Ready:
    """Give a continuation keys and values of its own, if it has none: those of a text that begins alike, or none."""
    one = part.of
    if part.copied is not None:
        one.past, one.computed = part.copied.of.past.copied(part.copied.tokens), part.copied.tokens
    elif one.past is None:
        one.past = decoder.start()
    return Ready(one, part.tokens, Chunk(one.next_ids(part.tokens), one.past))


def chunks_of(parts: Sequence[Ready]) -> tuple[list[Chunk], list[int]]:  # type: ignore[type-arg]
    """The chunks of one task, and which of them want logits."""
    return [part.chunk for part in parts], [number for number, part in enumerate(parts) if part.wanted]
