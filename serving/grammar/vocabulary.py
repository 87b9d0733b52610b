"""The tokens of a task's tokenizer as llguidance reads them: one vocabulary for each tokenizer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from weakref import WeakKeyDictionary, ref

from llguidance import LLTokenizer, TokenizerWrapper

from ken_core.tokenization import Encoder
from serving.errors import InvalidInputError

LONGEST_FIXED = 1 << 14
"""Characters that may be certain to follow. They take about 4 ms for each token."""
_SAMPLE = '{"name": "Eve 12", "list": [true, -0.5]}'


class Vocabularies:
    """Makes vocabularies. Threads may share it. A vocabulary lives as long as its tokenizer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: WeakKeyDictionary[Encoder, LLTokenizer] = WeakKeyDictionary()

    def of(self, encoder: Encoder, at: str) -> LLTokenizer:
        """The vocabulary of a tokenizer. The first time takes 0.3 s for 49,152 tokens.

        Args:
            at: the part of the request that needs it, for refusals.

        Raises:
            InvalidInputError: the texts of its tokens, put together, are not the text that they stand for.
        """
        with self._lock:
            found = self._made.get(encoder)
            if found is None:
                _check(encoder, at)
                own = _Tokens(encoder)
                found = self._made[encoder] = LLTokenizer(
                    TokenizerWrapper(own), n_vocab=len(own.tokens), eos_token=own.eos_token_id
                )
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
        self._encoder = ref(encoder)  # the vocabulary must not keep its tokenizer alive

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text that must follow, for each token anew; none for a longer one, and then nothing follows."""
        encoder = self._encoder()
        return [] if encoder is None or len(text) > LONGEST_FIXED else encoder.prompt(text, special=False)


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
