"""Texts of any length, of which no more is encoded than their answer needs, and never much in one go.

Of a text that is cut only the end that is kept is encoded, as far as it holds more tokens than a model takes; of one
that is read whole one part after another. Both need places where tokens end for certain (`ken_core.boundaries`). A text
without them, such as a long one in Chinese, is encoded whole, up to a bound of characters; a longer one is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile

from tokenizers import Encoding, Tokenizer

from ken_core.boundaries import Boundaries
from ken_core.errors import TextTooLongError

_LONG = 8
"""Characters a position: so many of most texts are more tokens than fit."""
_GROWTH = 4
_MOST = 1 << 17
"""Characters in one go. `tokenizers` takes 0.2 to 3.5 µs for one; 9 for those that normalising makes 18 of."""
_MOST_A_POSITION = 16
"""As many in one go at any rate, for models that take very many tokens."""
_PART = 1 << 14
"""Characters of a part of a text that is read whole."""


@dataclass
class Tokens:
    """Tokens without special ones, and where in a text they come from.

    Attributes:
        offsets: of each token, the characters of the text it stands for: (start, end).
        words: and the number of the word it belongs to, None where the tokenizer knows no words.
    """

    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    words: list[int | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: slice) -> Tokens:
        return Tokens(self.ids[which], self.offsets[which], self.words[which])

    def extend(self, following: Tokens) -> None:
        """Add those of the part that follows in the text; its words are other ones."""
        known = next((word + 1 for word in reversed(self.words) if word is not None), 0)
        self.ids += following.ids
        self.offsets += following.offsets
        self.words += [None if word is None else word + known for word in following.words]


@dataclass(frozen=True)
class Read:
    """What was encoded of a text.

    Attributes:
        start: the character of the text with which it begins.
        more: whether the text goes on at the end that is cut.
    """

    encoding: Encoding
    start: int = 0
    more: bool = False

    @property
    def tokens(self) -> Tokens:
        """With their places in the text. Words are counted from the first that was encoded."""
        offsets = self.encoding.offsets
        moved = [(start + self.start, end + self.start) for start, end in offsets] if self.start else offsets
        return Tokens(self.encoding.ids, moved, self.encoding.word_ids)


class LongTexts:
    """Reads texts with one tokenizer.

    Args:
        tokenizer: without truncation or padding.
        most: tokens that a model takes.
        cuts_left: whether the end of a text is kept, and not its beginning.
    """

    def __init__(self, tokenizer: Tokenizer, most: int, cuts_left: bool) -> None:
        self._tokenizer = tokenizer
        self._most = most
        self._cuts_left = cuts_left
        self.most_characters = max(_MOST, _MOST_A_POSITION * most)

    def is_long(self, *texts: str) -> bool:
        """Whether it may pay to read only a part of them."""
        return sum(map(len, texts)) > _LONG * self._most

    def kept(self, text: str) -> Read:
        """At the end that is kept, all tokens or more than a model takes.

        Raises:
            TextTooLongError: as many characters as are encoded in one go do not tell.
        """
        before = 0
        for size in takewhile(lambda size: size < len(text), self._sizes()):
            part = self._end(text, before, size)
            if part is not None:
                found = self.read(text, part, more=True)
                if len(found.encoding) > self._most:
                    return found
            before = size
        self._refuse_too_long(text, len(text))
        return self.read(text, slice(0, len(text)))

    def parts(self, text: str) -> list[slice]:
        """Parts of a text, each to be encoded in one go, whose tokens one after another are the text's.

        Raises:
            TextTooLongError: there are no places close enough to one another to divide it.
        """
        start, parts = 0, []
        while len(text) - start > _PART and (stop := self._stop(text, start)) is not None:
            parts.append(slice(start, stop))
            start = stop
        self._refuse_too_long(text, len(text) - start)
        return [*parts, slice(start, len(text))]

    def whole(self, text: str) -> Tokens:
        """All of a text's tokens. Raises as `parts` does."""
        tokens = Tokens()
        for part in self.parts(text):
            tokens.extend(self.read(text, part).tokens)
        return tokens

    def read(self, text: str, part: slice, more: bool = False) -> Read:
        """Encode a part of a text. Always as a batch: of one text `tokenizers` never lets go of the interpreter."""
        (encoding,) = self._tokenizer.encode_batch([text[part]], add_special_tokens=False)
        return Read(encoding, part.start, more)

    @cached_property
    def _boundaries(self) -> Boundaries | None:
        return Boundaries.of(self._tokenizer)

    def _sizes(self) -> Iterator[int]:
        size = _LONG * self._most
        while size < self.most_characters:
            yield size
            size *= _GROWTH
        yield self.most_characters

    def _end(self, text: str, more_than: int, at_most: int) -> slice | None:
        """The largest part at the end that is kept whose tokens are the text's; None if there is none of that size."""
        if self._boundaries is None:
            return None
        if not self._cuts_left:
            stop = self._boundaries.last(text, more_than, at_most)
            return None if stop is None else slice(0, stop)
        if not self._boundaries.joins:
            return None
        start = self._boundaries.first(text, len(text) - at_most, len(text) - more_than)
        return None if start is None else slice(start, len(text))

    def _stop(self, text: str, start: int) -> int | None:
        """Where a part ends that begins at `start`: nearest to its wanted length."""
        if self._boundaries is None or not self._boundaries.joins:
            return None
        wanted = start + _PART
        earlier = self._boundaries.last(text, start, wanted)
        return self._boundaries.first(text, wanted, start + self.most_characters) if earlier is None else earlier

    def _refuse_too_long(self, text: str, undivided: int) -> None:
        if undivided > self.most_characters:
            raise TextTooLongError(
                f"found a text of {len(text)} characters with no {self._most} tokens and no place to divide it in "
                f"{self.most_characters}; send at most {self.most_characters}"
            )
