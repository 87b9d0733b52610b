"""The tokens of a task's tokenizer as llguidance reads them: one vocabulary for each tokenizer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

from llguidance import LLTokenizer, TokenizerWrapper

from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError

MOST_KEPT = 4
"""Vocabularies, of 20 MB each for 49,152 tokens."""
_LOOKED_AT = 512
"""Characters of what is certain to follow, whose first token is what matters. They take 0.2 ms for each token; 16,384
took 4 ms."""
_LONGEST_TOKEN = 32
"""Bytes of a token that is looked for."""
_SAMPLE = '{"name": "Eve 12", "list": [true, -0.5]}'


class Vocabularies:
    """Makes vocabularies, and keeps those that were used last. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: OrderedDict[str, LLTokenizer] = OrderedDict()

    def of(self, encoder: Encoder, at: str) -> LLTokenizer:
        """The vocabulary of a tokenizer. The first time takes 0.3 s for 49,152 tokens.

        Args:
            at: the part of the request that needs it, for refusals.

        Raises:
            InvalidInputError: the texts of its tokens, put together, are not the text that they stand for.
        """
        with self._lock:
            key = encoder.vocabulary_digest
            found = self._made.get(key)
            if found is None:
                _check(encoder, at)
                own = _Tokens(encoder)
                found = self._made[key] = LLTokenizer(
                    TokenizerWrapper(own), n_vocab=len(own.tokens), eos_token=own.eos_token_id
                )
            self._made.move_to_end(key)
            while len(self._made) > MOST_KEPT:
                self._made.popitem(last=False)
            return found


class _Tokens:
    """A tokenizer under the names that llguidance asks for.

    The end of a text is a token of its own behind all others, since each task says by which tokens its texts end.
    """

    bos_token_id = None

    def __init__(self, encoder: Encoder) -> None:
        size = encoder.largest_ids[0] + 1
        self.eos_token_id = size
        self.tokens: Sequence[bytes] = [*(_bytes(encoder, token) for token in range(size)), b"<end>"]
        self.special_token_ids = [token for token in range(size) if _is_special(encoder, token)] + [size]
        self._special = frozenset(self.special_token_ids)
        self._encoder = encoder

    def __call__(self, text: str) -> list[int]:
        """Tokens of the beginning of a text that must follow, for each token anew.

        They are the tokenizer's own, unless it finds a special token in the text, or puts a space before it.
        """
        beginning = text[:_LOOKED_AT]
        wanted, ids = beginning.encode(), self._encoder.prompt(beginning, special=False)
        if not self._special.isdisjoint(ids) or b"".join(self.tokens[token] for token in ids) != wanted:
            return self._longest_first(wanted)
        return ids

    def _longest_first(self, wanted: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(wanted):
            sizes = range(min(_LONGEST_TOKEN, len(wanted) - at), 0, -1)
            size = next((size for size in sizes if wanted[at : at + size] in self._plain), None)
            if size is None:
                return []
            ids.append(self._plain[wanted[at : at + size]])
            at += size
        return ids

    @cached_property
    def _plain(self) -> dict[bytes, int]:
        """Tokens that are text, by their bytes."""
        return {raw: token for token, raw in enumerate(self.tokens) if raw and token not in self._special}


def _bytes(encoder: Encoder, token: int) -> bytes:
    return encoder.bytes_of(token) if encoder.has(token) else b""


def _is_special(encoder: Encoder, token: int) -> bool:
    return encoder.is_special(token) or token in encoder.bytes_of.special


def _check(encoder: Encoder, at: str) -> None:
    """Whether a grammar of tokens is one of the text that readers get."""
    ids = [token for token in encoder.prompt(_SAMPLE, special=False) if not _is_special(encoder, token)]
    stream = encoder.stream(encoder.prompt("a", special=False), plain=False)
    shown = "".join(stream.add(token) for token in ids) + stream.end()
    if shown.encode() != b"".join(map(encoder.bytes_of, ids)):
        raise InvalidInputError(
            "the tokens of the task's tokenizer do not join to text as they are, so no grammar can be enforced on its "
            "texts; send none, or publish the task with a tokenizer of bytes or of sentencepiece",
            at=at,
        )
