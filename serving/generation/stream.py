"""One continuation as its reader sees it: tokens from the engine's thread become text on the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

from ken_core.foreign import is_from_rust, reason
from ken_core.tokenization import Encoder
from serving.errors import InternalError
from serving.generation.pieces import Candidate, Finish, Piece, Token
from serving.generation.sampling import Chosen
from serving.generation.stops import Stops

_log = logging.getLogger(__name__)

Event = tuple[int, Chosen | None, Finish | None, BaseException | None]
"""Of a continuation, by its number: a token, whether it was the last, or why there is none."""


class Inbox:
    """Where the engine puts the tokens of one continuation; its reader waits on an event loop."""

    def __init__(self, number: int, events: asyncio.Queue[Event], loop: asyncio.AbstractEventLoop) -> None:
        self._number = number
        self._events = events
        self._loop = loop

    def chosen(self, token: Chosen, finish: Finish | None) -> None:
        self._put((self._number, token, finish, None))

    def failed(self, error: BaseException) -> None:
        self._put((self._number, None, None, error))

    def _put(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            _log.debug("the event loop of a request is closed")


class Text:
    """The text of one continuation, made of its tokens.

    Args:
        before: the tokens of the prompt.
        stops: texts that end it.
        stop_ids: tokens of the request that end it; the last token may be one of them.
        least: tokens before which no stop is looked for.
        plain: whether special tokens are left out.
        kept: special tokens that are part of the text nevertheless.
    """

    def __init__(
        self,
        number: int,
        encoder: Encoder,
        before: Sequence[int],
        stops: Sequence[str],
        stop_ids: Sequence[int],
        least: int,
        plain: bool,
        kept: Collection[str] = (),
    ) -> None:
        self._number = number
        self._encoder = encoder
        self._stops = Stops(stops)
        self._stop_ids = frozenset(stop_ids)
        self._least = least
        self._count = 0
        with _its_tokenizer():
            self._stream = encoder.stream(before, plain, kept)

    def add(self, chosen: Chosen, finish: Finish | None) -> Piece:
        """The piece that a token makes, which may have no text.

        Raises:
            InternalError: the task's tokenizer fails on it.
        """
        self._count += 1
        with _its_tokenizer():
            token = self._token(chosen)
            ends_it = finish == "stop" and not chosen.completes
            text = "" if ends_it else self._stream.add(chosen.id)
            if finish is not None:
                text += self._stream.end()
        if self._count <= self._least:
            stop = None
        else:
            text, stop = self._stops.add(text)
        if stop is not None:
            return Piece(self._number, text, (token,), "stop", stop)
        if finish is not None:
            text += self._stops.end()
        stopped_by = chosen.id if finish == "stop" and chosen.id in self._stop_ids else None
        return Piece(self._number, text, (token,), finish, stopped_by)

    def _token(self, chosen: Chosen) -> Token:
        likeliest = [self._candidate(i, logprob) for i, logprob in chosen.likeliest]
        raw = self._encoder.bytes_of(chosen.id)
        special = self._encoder.is_special(chosen.id)
        return Token(chosen.id, raw.decode(errors="replace"), raw, chosen.logprob, likeliest, special)

    def _candidate(self, token: int, logprob: float) -> Candidate:
        raw = self._encoder.bytes_of(token)
        return Candidate(token, raw.decode(errors="replace"), raw, logprob, self._encoder.is_special(token))


class _its_tokenizer:
    """Around code of a task's tokenizer, which may fail, or panic."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and (isinstance(error, Exception) or is_from_rust(error)):
            raise InternalError(f"the task's tokenizer cannot write its tokens as text ({reason(error)})") from error
