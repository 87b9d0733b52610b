"""Text in the forms of OpenAI's protocol: one object, or chunks of it as server-sent events."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from serving.api.event_stream import event
from serving.api.failures import Shape
from serving.api.generating import Answering, Continuation, Form
from serving.api.openai import shape
from serving.generation.pieces import Candidate, Finish, Piece, Token

_DONE = event(b"[DONE]")
_FINGERPRINT = 12
_CONTINUES = 0b10
"""The first bits of a byte that continues a character, in UTF-8."""
_HALF = "�"
"""Stands where a token is no whole character."""


class TextUsage(BaseModel):
    prompt_tokens: int = Field(description="tokens of all prompts, special tokens included")
    completion_tokens: int = Field(description="tokens of all continuations")
    total_tokens: int


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field(description="an object of JSON, as a text")


class CallOfTool(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="null where there is nothing beside calls of tools")
    refusal: None = None
    tool_calls: list[CallOfTool] | None = Field(None, description="absent where there are none")


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: dict[str, Any] | None = None


class ChatCompletion(BaseModel):
    """Answers to the last message."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="unix seconds")
    model: str = Field(description="as the request names it; the digest of a merge")
    choices: list[ChatChoice]
    usage: TextUsage
    system_fingerprint: str = Field(description="the beginning of the digest of the delta that answered")


class CompletionChoice(BaseModel):
    index: int = Field(description="those of the first prompt come first")
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None = None


class Completion(BaseModel):
    """Continuations of prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="unix seconds")
    model: str = Field(description="as the request names it; the digest of a merge")
    choices: list[CompletionChoice]
    usage: TextUsage
    system_fingerprint: str = Field(description="the beginning of the digest of the delta that answered")


@dataclass(frozen=True)
class Wanted:
    """What a request says of its answer.

    Attributes:
        model: as it names the task; None: it wants tasks merged.
        usage: whether a stream tells at its end how many tokens there were.
        running_usage: whether each of its chunks then tells how many there were so far.
        logprobs: whether probabilities are told.
    """

    model: str | None
    usage: bool
    running_usage: bool
    logprobs: bool


class _OpenAIForm(Form):
    """What both forms have: the head of each object, usage, and the end of a stream."""

    shape: Shape = staticmethod(shape)

    def __init__(self, answering: Answering, wanted: Wanted, kind: str, prefix: str) -> None:
        self._generation = answering.generation
        self._wanted = wanted
        self._kind = kind
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": wanted.model or self._generation.digest,
            "system_fingerprint": self._generation.digest[:_FINGERPRINT],
        }

    def object(self, choices: Sequence[Any]) -> dict[str, Any]:
        return {**self._head, "object": self._kind, "choices": choices, "usage": self._usage()}

    def chunk(self, index: int, **content: Any) -> bytes:
        """An event with a part of one choice."""
        usage = self._usage() if self._wanted.running_usage else None
        return self._event([{"index": index, "finish_reason": None, **content}], usage)

    def end(self) -> bytes:
        return (self._event([], self._usage()) if self._wanted.usage else b"") + _DONE

    def _event(self, choices: Sequence[Any], usage: dict[str, int] | None) -> bytes:
        told = {"usage": usage} if self._wanted.usage else {}
        return event({**self._head, "object": self._chunk_kind, "choices": choices, **told})

    @property
    def _chunk_kind(self) -> str:
        return self._kind

    def _usage(self) -> dict[str, int]:
        asked, given = self._generation.prompt_tokens, self._generation.generated
        return {"prompt_tokens": asked, "completion_tokens": given, "total_tokens": asked + given}


class ChatForm(_OpenAIForm):
    """Answers to a chat.

    Args:
        shape: the form of failures.
    """

    def __init__(self, answering: Answering, wanted: Wanted, shape: Shape = shape) -> None:
        super().__init__(answering, wanted, "chat.completion", "chatcmpl")
        self.shape = shape
        self._begun = set[int]()

    @property
    def _chunk_kind(self) -> str:
        return f"{self._kind}.chunk"

    def whole(self, continuations: Sequence[Continuation]) -> Any:
        return self.object([self._choice(index, one) for index, one in enumerate(continuations)])

    def _choice(self, index: int, one: Continuation) -> dict[str, Any]:
        message = self._message(one)
        return {
            "index": index,
            "message": message,
            "finish_reason": self._reason(one.finish, "tool_calls" in message),
            "logprobs": self._logprobs(one.tokens),
        }

    def _message(self, one: Continuation) -> dict[str, Any]:
        return {"role": "assistant", "content": one.text, "refusal": None}

    def events(self, piece: Piece) -> bytes:
        made = []
        if piece.choice not in self._begun:
            self._begun.add(piece.choice)
            made.append(self._delta(piece, self._opening()))
        deltas = list(self._deltas(piece))
        if self._wanted.logprobs and piece.tokens:
            first = deltas.pop(0) if deltas else {"content": ""}
            made.append(self._delta(piece, first, logprobs=self._logprobs(piece.tokens)))
        made += [self._delta(piece, delta) for delta in deltas]
        if piece.finish is not None:
            reason = self._reason(piece.finish, self._called(piece.choice))
            made.append(self._delta(piece, {}, finish_reason=reason))
        return b"".join(made)

    def _opening(self) -> dict[str, Any]:
        """The first delta of a choice."""
        return {"role": "assistant", "content": ""}

    def _deltas(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """What a piece adds to its choice's message."""
        if piece.text:
            yield {"content": piece.text}

    def _called(self, choice: int) -> bool:
        """Whether a choice has called a function so far."""
        return False

    def _reason(self, finish: Finish | None, called: bool) -> str | None:
        """Why a choice ended, in the protocol's words."""
        return finish

    def _delta(self, piece: Piece, delta: dict[str, Any], **beside: Any) -> bytes:
        return self.chunk(piece.choice, delta=delta, **{"logprobs": None, **beside})

    def _logprobs(self, tokens: Iterable[Token]) -> dict[str, Any] | None:
        return {"content": [_token(token) for token in tokens], "refusal": None} if self._wanted.logprobs else None


class CompletionForm(_OpenAIForm):
    """Continuations of prompts.

    Args:
        echoes: how many continuations each prompt has, if it is repeated before them; None: it is not.
    """

    def __init__(self, answering: Answering, wanted: Wanted, echoes: int | None = None) -> None:
        super().__init__(answering, wanted, "text_completion", "cmpl")
        self._echoes = echoes
        self._lists: dict[int, _TokenLists] = {}
        self._begun = set[int]()

    def whole(self, continuations: Sequence[Continuation]) -> Any:
        return self.object(
            [
                {
                    "index": index,
                    "text": self._echo(index) + one.text,
                    "finish_reason": one.finish,
                    "logprobs": self._logprobs(index, one.tokens),
                }
                for index, one in enumerate(continuations)
            ]
        )

    def events(self, piece: Piece) -> bytes:
        text = self._echo(piece.choice) + piece.text
        if not text and piece.finish is None and not (self._wanted.logprobs and piece.tokens):
            return b""
        logprobs = self._logprobs(piece.choice, piece.tokens)
        return self.chunk(piece.choice, text=text, logprobs=logprobs, finish_reason=piece.finish)

    def _echo(self, choice: int) -> str:
        """The prompt before the beginning of a continuation; empty after that."""
        if self._echoes is None or choice in self._begun:
            return ""
        self._begun.add(choice)
        return self._generation.prompt_text(choice // self._echoes)

    def _logprobs(self, choice: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._wanted.logprobs:
            return None
        return self._lists.setdefault(choice, _TokenLists()).of(tokens)


class _TokenLists:
    """Tokens in the form of completions: lists of equal length, and where in the continuation each token begins."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def of(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return {
            "tokens": [_name(token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_likeliest(token) for token in tokens],
            "text_offset": [self._offset(token) for token in tokens],
        }

    def _offset(self, token: Token) -> int:
        held, _ = self._decoder.getstate()
        broken = bool(held and token.raw and token.raw[0] >> 6 != _CONTINUES)  # what is held becomes one U+FFFD
        before = self._length
        self._length += len(self._decoder.decode(token.raw))
        return before + broken


def _likeliest(token: Token) -> dict[str, float | None]:
    """By name. The chosen token is always among them; of others with one name, the likeliest one is."""
    found: dict[str, float | None] = {_name(one): one.logprob for one in reversed(token.likeliest)}
    return {**dict(reversed(found.items())), _name(token): token.logprob}


def _name(token: Token | Candidate) -> str:
    """A token's text; as OpenAI has it, its bytes where it is no whole text, which keeps such tokens apart."""
    if _HALF not in token.text:
        return token.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)


def _token(token: Token) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": token.logprob,
        "bytes": list(token.raw),
        "top_logprobs": [_candidate(one) for one in token.likeliest],
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.raw)}
