"""What is generated, as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length"]
"""Why a continuation ended: an end-of-text token or a stop, or no room for more."""


@dataclass(frozen=True)
class Candidate:
    """A token that could have been chosen, with its log-probability before any sampling parameter.

    Attributes:
        text, raw, special: as of a `Token`.
    """

    id: int
    text: str
    raw: bytes
    logprob: float
    special: bool = False


@dataclass(frozen=True)
class Token:
    """A token that was chosen.

    Attributes:
        text: that the token stands for by itself; what is no whole character of UTF-8 is shown as U+FFFD.
        raw: the bytes that the token stands for.
        logprob: before any sampling parameter; None unless the request asks for probabilities.
        likeliest: the likeliest tokens at this place, as many as the request asks for.
        special: whether it is one of the tokenizer's special tokens, such as the end of a text.
    """

    id: int
    text: str
    raw: bytes
    logprob: float | None = None
    likeliest: Sequence[Candidate] = ()
    special: bool = False


@dataclass(frozen=True)
class Piece:
    """The next part of one continuation.

    Attributes:
        choice: its number: prompt times choices a prompt, plus the number within the prompt.
        text: whole characters; empty while more tokens are needed to know a character, or whether a stop begins.
        tokens: that were chosen since the last piece.
        finish: why the continuation ended with this piece; None: it goes on.
        stop: the text or the token id that ended it, if one of the request's did.
    """

    choice: int
    text: str
    tokens: Sequence[Token]
    finish: Finish | None = None
    stop: str | int | None = None
