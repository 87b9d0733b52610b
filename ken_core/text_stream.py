"""From tokens to text while tokens come: whole characters alone, and the bytes of single tokens."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_BEFORE = 6
"""Tokens of the prompt that are decoded first: whether a text begins with a space depends on what stands before it."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"
_MOST_HELD = 16
"""Tokens of which one character may consist; `DecodeStream` decodes all of them again with each further one."""
_INVALID = "Invalid prefix"
"""How `tokenizers` begins to say that a token changes text which was given out already."""


class TextStream:
    """The text of tokens as they come.

    Args:
        before: the tokens before the first one.
        left_out: special tokens that are no part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int], left_out: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._left_out = left_out
        self._stream = DecodeStream(skip_special_tokens=False)
        self._held: list[int] = []
        for token in before[-_BEFORE:]:
            self.add(token)
        self._held.clear()

    def add(self, token: int) -> str:
        """The text that is known with this token; empty while more tokens are needed to know a character."""
        if token in self._left_out:
            return ""
        if len(self._held) >= _MOST_HELD:
            return self._anew(token)
        self._held.append(token)
        try:
            text: str | None = self._stream.step(self._tokenizer, token)
        except Exception as error:
            if not str(error).startswith(_INVALID):
                raise
            self._held.pop()
            return self._anew(token)
        if text is None:
            return ""
        self._held.clear()
        return text

    def end(self) -> str:
        """The text of the last tokens, if they are no whole character; what is missing is shown as U+FFFD."""
        held, self._held = self._held, []
        return str(self._tokenizer.decode(held, skip_special_tokens=False)) if held else ""

    def _anew(self, token: int) -> str:
        """The text where bytes turn out to be no character: they are shown as U+FFFD, and a new text begins."""
        broken = self.end()
        self._stream = DecodeStream(skip_special_tokens=False)
        letter = self._tokenizer.token_to_id("a")
        if letter is not None:  # the space before a word is part of the text only behind something
            self._stream.step(self._tokenizer, letter)
        return broken + self.add(token)


class TokenBytes:
    """The bytes that single tokens of a tokenizer stand for.

    Attributes:
        special: ids of special tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = frozenset(added)
        self.special = frozenset(token for token, told in added.items() if told.special)
        self._writes_bytes = "ByteLevel" in repr(tokenizer.decoder)

    def __call__(self, token: int) -> bytes:
        written = self._tokenizer.id_to_token(token) or ""
        if token in self._added:
            return written.encode()
        if found := _BYTE.fullmatch(written):
            return bytes([int(found[1], 16)])
        if self._writes_bytes and all(letter in _BYTES for letter in written):
            return bytes(_BYTES[letter] for letter in written)
        return written.replace(_SPACE, " ").encode()


def _letters_of_bytes() -> dict[str, int]:
    """The letters that GPT-2's tokenizer, and all byte-level ones since, write for bytes."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in set(shown)]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _letters_of_bytes()
