"""Rows of token ids: the special tokens around one text or two, and how much of the texts fits between them.

`tokenizers` can cut a pair of texts by itself, but then it builds every combination of the cut-off parts of one text
with those of the other. The cost grows with the square of the length: two texts of 20,000 characters took 1.9 s and
700 MB at 64 positions. A pair that is cut and put together here costs no more than its two texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import tokenizers

from ken_core.errors import CheckpointError


@dataclass(frozen=True)
class Template:
    """The special tokens that a tokenizer puts before, between and after texts.

    Attributes:
        special: ids of the special tokens before the first text, after it, and so on: one run more than there are
            texts.
        special_types: the segment ids of the special tokens, in runs of the same lengths.
        types: the segment id of each text's tokens.
    """

    special: tuple[tuple[int, ...], ...]
    special_types: tuple[tuple[int, ...], ...]
    types: tuple[int, ...]

    @classmethod
    def of(cls, probe: tokenizers.Encoding, texts: int) -> Template:
        """The template with which a tokenizer encoded a probe of `texts` texts, each of which has a token.

        Raises:
            CheckpointError: a text has no token.
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
        """A row's token ids: those of the texts, and the special ones."""
        between = (chain(text, run) for text, run in zip(texts, self.special[1:], strict=True))
        return list(chain(self.special[0], *between))

    def fill_types(self, *lengths: int) -> list[int]:
        """A row's segment ids, for texts of these lengths in tokens and the special tokens."""
        filled = list(self.special_types[0])
        for length, kind, run in zip(lengths, self.types, self.special_types[1:], strict=True):
            filled += [kind] * length
            filled += run
        return filled


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each of two texts are kept where there is room for `room` in all: the longer is cut first."""
    if first + second <= room:
        return first, second
    kept = min(first, second, room // 2)
    return (kept, room - kept) if first <= second else (room - kept, kept)


def overlapping(length: int, room: int, stride: int) -> list[range]:
    """Ranges of at most `room` numbers that cover 0 to `length` and overlap by `stride`; at least one range.

    Args:
        stride: how many numbers at the end of a range the next range begins with; less than `room`.
    """
    last = max(0, length - room)
    starts = range(0, last + room - stride, room - stride) if last else range(1)
    return [range(start, min(start + room, length)) for start in starts]
