"""Encoding texts of any length: no more of a text than its answer needs, and never much in one go.

If a text is cut to what a model takes, only the end that is kept is encoded, until it has more tokens than the model
takes. If a text is read whole, one part after another is encoded. Both need places where tokens are certain to end
(`ken_core.boundaries`). A text without such places, for example a long one in Chinese, is encoded whole, up to a bound
of characters; a longer one is refused.
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
"""Characters for each token that a model takes: in most texts, so many characters are more tokens than it takes."""
_GROWTH = 4
"""By how much the part that is tried next is larger."""
_MOST = 1 << 17
"""The most characters encoded in one go. `tokenizers` takes 0.2 to 3.5 µs a character, and 9 µs for a character that
normalising makes 18 of."""
_MOST_A_POSITION = 16
"""Characters for each token that a model takes, which may be encoded in one go even if they are more than `_MOST`."""
_PART = 1 << 14
"""Characters that each part of a text has, where a text is read whole."""


@dataclass
class Tokens:
    """Tokens without special ones, and their places in the text.

    Attributes:
        offsets: for each token, the characters of the text it stands for: (start, end).
        words: for each token, the number of the word it belongs to, None where the tokenizer knows no words.
    """

    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    words: list[int | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: slice) -> Tokens:
        return Tokens(self.ids[which], self.offsets[which], self.words[which])

    def extend(self, following: Tokens) -> None:
        """Add the tokens of the part that follows in the text; the numbers of its words continue this one's."""
        known = next((word + 1 for word in reversed(self.words) if word is not None), 0)
        self.ids += following.ids
        self.offsets += following.offsets
        self.words += [None if word is None else word + known for word in following.words]


@dataclass(frozen=True)
class Read:
    """A part of a text, encoded.

    Attributes:
        start: the place of the part's first character in the text.
        more: whether the text goes on at the end that is cut.
    """

    encoding: Encoding
    start: int = 0
    more: bool = False

    @property
    def tokens(self) -> Tokens:
        """The part's tokens with their places in the text. Words are counted from the first one that was encoded."""
        offsets = self.encoding.offsets
        moved = [(start + self.start, end + self.start) for start, end in offsets] if self.start else offsets
        return Tokens(self.encoding.ids, moved, self.encoding.word_ids)


class LongTexts:
    """Reads texts with one tokenizer.

    Args:
        tokenizer: without truncation or padding.
        most: how many tokens a model takes.
        cuts_left: whether texts are cut on the left, so that their end is kept and not their beginning.
    """

    def __init__(self, tokenizer: Tokenizer, most: int, cuts_left: bool) -> None:
        self._tokenizer = tokenizer
        self._most = most
        self._cuts_left = cuts_left
        self.most_characters = max(_MOST, _MOST_A_POSITION * most)

    def is_long(self, *texts: str) -> bool:
        """Whether texts are so long that reading only a part of them may pay."""
        return sum(map(len, texts)) > _LONG * self._most

    def kept(self, text: str) -> Read:
        """Encode, from the end of a text that is kept, more tokens than a model takes, or all there are.

        Raises:
            TextTooLongError: the characters that are encoded in one go do not determine these tokens.
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
        """Parts of a text, each to be encoded in one go, whose tokens in sequence are the text's tokens.

        Raises:
            TextTooLongError: the places where the text may be divided are too far apart.
        """
        start, parts = 0, []
        while len(text) - start > _PART and (stop := self._stop(text, start)) is not None:
            parts.append(slice(start, stop))
            start = stop
        self._refuse_too_long(text, len(text) - start)
        return [*parts, slice(start, len(text))]

    def whole(self, text: str) -> Tokens:
        """All tokens of a text. Raises as `parts` does."""
        tokens = Tokens()
        for part in self.parts(text):
            tokens.extend(self.read(text, part).tokens)
        return tokens

    def read(self, text: str, part: slice, more: bool = False) -> Read:
        """Encode a part of a text, as a batch of one: for a single text `tokenizers` would not release the GIL."""
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
        """The largest part, at the end of the text that is kept, whose tokens are those of the text.

        None if no such part has more than `more_than` and at most `at_most` characters.
        """
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
        """Where to end a part that begins at `start`: at most at its wanted length, or else as soon as possible."""
        if self._boundaries is None or not self._boundaries.joins:
            return None
        wanted = start + _PART
        earlier = self._boundaries.last(text, start, wanted)
        return self._boundaries.first(text, wanted, start + self.most_characters) if earlier is None else earlier

    def _refuse_too_long(self, text: str, undivided: int) -> None:
        if undivided > self.most_characters:
            raise TextTooLongError(
                f"found a text of {len(text)} characters; at most {self.most_characters} are encoded in one go, and "
                f"they hold no place to divide the text or fewer than {self._most} tokens; send at most "
                f"{self.most_characters} characters"
            )
