"""Special tokens around one text or between two, and how much of two texts fits with them.

`tokenizers` can cut a pair by itself, but then builds every combination of what is left over of the one text with what
is left over of the other: two texts of 20,000 characters took 1.9 s and 700 MB at 64 positions, with the square of
their length. Cut and put together from parts, a pair costs what its two texts cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import tokenizers

from ken_core.errors import CheckpointError


@dataclass(frozen=True)
class Template:
    """What a tokenizer puts before, between and after texts.

    Attributes:
        special: ids of special tokens before the first text, after it, and so on: one run more than there are texts.
        special_types: their segment ids.
        types: the segment id of each text's tokens.
    """

    special: tuple[tuple[int, ...], ...]
    special_types: tuple[tuple[int, ...], ...]
    types: tuple[int, ...]

    @classmethod
    def of(cls, probe: tokenizers.Encoding, texts: int) -> Template:
        """The template by which a tokenizer encoded `texts` texts, each of which has a token.

        Raises:
            CheckpointError: one of them has none.
        """
        special: list[list[int]] = [[]]
        special_types: list[list[int]] = [[]]
        types = []
        before = None
        for token, kind, text in zip(probe.ids, probe.type_ids, probe.sequence_ids, strict=True):
            if text is None:
                special[-1].append(token)
                special_types[-1].append(kind)
            elif text != before:
                types.append(kind)
                special.append([])
                special_types.append([])
            before = text if text is not None else before
        if len(types) != texts:
            raise CheckpointError("the tokenizer has no token for 'a'; expected one that takes any text")
        return cls(tuple(map(tuple, special)), tuple(map(tuple, special_types)), tuple(types))

    def __len__(self) -> int:
        """How many special tokens there are."""
        return sum(map(len, self.special))

    def fill(self, *texts: Sequence[int]) -> list[int]:
        """Token ids of texts with the special ones."""
        between = (chain(text, run) for text, run in zip(texts, self.special[1:], strict=True))
        return list(chain(self.special[0], *between))

    def fill_types(self, *lengths: int) -> list[int]:
        """Segment ids of texts of so many tokens with the special ones."""
        filled = list(self.special_types[0])
        for length, kind, run in zip(lengths, self.types, self.special_types[1:], strict=True):
            filled += [kind] * length
            filled += run
        return filled


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept where both have room for `room`: the longer one is cut first."""
    if first + second <= room:
        return first, second
    kept = min(first, second, room // 2)
    return (kept, room - kept) if first <= second else (room - kept, kept)


def overlapping(length: int, room: int, stride: int) -> list[range]:
    """Parts of at most `room` of a length, each of which begins with the last `stride` of the one before; at least one.

    Args:
        stride: less than `room`.
    """
    last = max(0, length - room)
    starts = range(0, last + room - stride, room - stride) if last else range(1)
    return [range(start, min(start + room, length)) for start in starts]
