"""The server's own protocol for text: ``POST /v1/tasks/{task}/generate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf
from pydantic_core import PydanticCustomError

from serving.api.bodies import body_of, read_body
from serving.api.chat_messages import Messages
from serving.api.event_stream import event
from serving.api.failures import Failure
from serving.api.generating import Answering, Continuation, Form, Generator, TaskGeneration
from serving.api.merging import MergedModel
from serving.api.native import TaskOrAlias
from serving.api.predicting import Predictor
from serving.api.problems import PREDICTION_FAILURES, problem, responses
from serving.api.prompts import Ids, are_ids
from serving.api.protocol import Protocol
from serving.api.stops import StopIds, Stops
from serving.api.streamed import streamed
from serving.generation.pieces import Piece, Token
from serving.generation.query import Chat, GenerationQuery, Prompt, SamplingParameters
from serving.incoming import Free, Incoming
from serving.pipelines.token_ids import TokenIds
from serving.replica.continuing import MOST_CHOICES, MOST_LOGPROBS
from serving.service import Service


class ChatPrompt(Incoming):
    """Messages, of which the task's own chat template makes the prompt."""

    messages: Messages
    tools: list[dict[str, Any]] | None = Field(None, description="that the template may describe")
    arguments: Free = Field({}, description="further variables of the template")
    continues_last: bool = Field(
        False, description="whether the last message is the beginning of the answer, and is continued"
    )

    def chat(self) -> Chat:
        return Chat(
            [message.plain() for message in self.messages],
            self.tools,
            self.arguments,
            opens_answer=not self.continues_last,
            continues_last=self.continues_last,
        )


def _by_form(plain: Any) -> Any:
    """One refusal, of what was meant: a union would refuse by every form."""
    if isinstance(plain, Mapping):
        return ChatPrompt.model_validate(plain)
    if isinstance(plain, str):
        return plain
    if are_ids(plain):
        return TokenIds(tuple(plain))
    raise PydanticCustomError("prompt", "expected one text, one list of token ids, or an object with messages")


TextOrIdsOrChat = Annotated[
    str | InstanceOf[TokenIds] | ChatPrompt,
    BeforeValidator(_by_form, json_schema_input_type=str | Ids | ChatPrompt),
]


class GenerationParameters(SamplingParameters):
    """How much is generated, how, and what is told of it."""

    max_tokens: int | None = Field(
        None, ge=1, description="most tokens of each continuation; by default as many as the model takes"
    )
    min_tokens: int = Field(0, ge=0, description="tokens before which no continuation ends")
    choices: int = Field(1, ge=1, le=MOST_CHOICES, description="continuations of the prompt")
    stop: Stops = Field([], description="texts that end a continuation and are no part of it")
    stop_token_ids: StopIds = Field([], description="tokens that end a continuation, in addition to the task's own")
    ignore_end: bool = Field(False, description="whether the task's own end-of-text tokens end nothing")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MOST_LOGPROBS,
        description="tell the tokens, their log-probabilities, and so many of the likeliest at each place",
    )
    special_tokens: bool = Field(False, description="whether the text shows special tokens")


class GenerateRequest(Incoming):
    """A prompt to continue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "The rain in", "parameters": {"max_tokens": 24, "temperature": 0.7}},
                {"prompt": {"messages": [{"role": "user", "content": "My parcel is late."}]}, "stream": True},
            ]
        },
    )

    prompt: TextOrIdsOrChat = Field(
        description="a text; token ids of the task's own tokenizer, to which no special token is added; or a chat"
    )
    parameters: GenerationParameters = GenerationParameters.model_validate({})
    stream: bool = Field(False, description="whether the text is sent as it comes, as server-sent events")
    model: MergedModel | None = Field(
        None,
        description="tasks to merge for this request, with the head of the path's task; by default that task alone",
    )

    def generation(self) -> TaskGeneration:
        asked = self.parameters
        query = GenerationQuery(
            prompts=[self._prompt()],
            sampling=SamplingParameters(
                **asked.model_dump(include=set(SamplingParameters.model_fields), exclude_unset=True)
            ),
            choices=asked.choices,
            max_tokens=asked.max_tokens,
            min_tokens=asked.min_tokens,
            stop=tuple(asked.stop),
            stop_ids=tuple(asked.stop_token_ids),
            ignores_end=asked.ignore_end,
            logprobs=asked.logprobs,
            plain=not asked.special_tokens,
        )
        tells = asked.logprobs is not None
        return TaskGeneration(query, lambda answering: NativeForm(answering, tells), self.stream, _NAMES, self.model)

    def _prompt(self) -> Prompt:
        return self.prompt.chat() if isinstance(self.prompt, ChatPrompt) else self.prompt


_NAMES: Mapping[str, str] = {
    "model": "task",
    "prompts": "prompt",
    "messages": "prompt.messages",
    "n": "parameters.choices",
    "max_tokens": "parameters.max_tokens",
    "min_tokens": "parameters.min_tokens",
    "stop_token_ids": "parameters.stop_token_ids",
    "logit_bias": "parameters.logit_bias",
}


class Candidate(BaseModel):
    """A token that could have been chosen."""

    id: int
    text: str
    logprob: float


class GeneratedToken(BaseModel):
    """A token that was chosen."""

    id: int
    text: str = Field(description="that the token stands for by itself; U+FFFD where that is no whole character")
    logprob: float = Field(description="before any sampling parameter")
    likeliest: list[Candidate]


class Choice(BaseModel):
    """A continuation."""

    text: str
    finish: Literal["stop", "length"] = Field(description="why it ended: an end or a stop, or no room for more")
    stop: str | int | None = Field(description="the text or the token of the request's own that ended it")
    tokens: list[GeneratedToken] | None = Field(None, description="absent unless logprobs are asked for")


class GeneratedUsage(BaseModel):
    prompt_tokens: int = Field(description="tokens of the prompt, special tokens included")
    generated_tokens: int = Field(description="of all continuations together")


class GenerateAnswer(BaseModel):
    """Continuations of the prompt."""

    task: str
    digest: str = Field(description="sha256 of the delta that answered, or of what the merge that did is made of")
    choices: list[Choice]
    usage: GeneratedUsage
    model: MergedModel | None = Field(
        None, description="the merge that answered, with its versions pinned; absent where a version of the task did"
    )


class NativeForm(Form):
    """Continuations, or events: ``piece`` for the next part of one, and at last ``end`` or ``error``."""

    shape = staticmethod(problem)

    def __init__(self, answering: Answering, tells_tokens: bool) -> None:
        self._answering = answering
        self._tells_tokens = tells_tokens

    def whole(self, continuations: Sequence[Continuation]) -> Any:
        choices = [
            {"text": one.text, "finish": one.finish, "stop": one.stop, **self._tokens(one.tokens)}
            for one in continuations
        ]
        return {**self._facts(), "choices": choices, "usage": self._usage()}

    def events(self, piece: Piece) -> bytes:
        if not piece.text and piece.finish is None and not (self._tells_tokens and piece.tokens):
            return b""
        told = {"choice": piece.choice, "text": piece.text, "finish": piece.finish, "stop": piece.stop}
        return event({**told, **self._tokens(piece.tokens)}, "piece")

    def end(self) -> bytes:
        return event({**self._facts(), "usage": self._usage()}, "end")

    def failed(self, failure: Failure) -> bytes:
        return event(bytes(problem(failure).body), "error")

    def _facts(self) -> dict[str, Any]:
        resolved = self._answering.resolved
        merged = {} if resolved.merge is None else {"model": resolved.merge.plain()}
        return {"task": resolved.task, "digest": resolved.digest, **merged}

    def _usage(self) -> dict[str, int]:
        generation = self._answering.generation
        return {"prompt_tokens": generation.prompt_tokens, "generated_tokens": generation.generated}

    def _tokens(self, tokens: Sequence[Token]) -> dict[str, Any]:
        if not self._tells_tokens:
            return {}
        return {
            "tokens": [
                {
                    "id": token.id,
                    "text": token.text,
                    "logprob": token.logprob,
                    "likeliest": [{"id": o.id, "text": o.text, "logprob": o.logprob} for o in token.likeliest],
                }
                for token in tokens
            ]
        }


def router(service: Service, predictor: Predictor) -> APIRouter:
    """The route of the native protocol for text."""
    routes = APIRouter(prefix="/v1/tasks", tags=["predict"], responses=responses(*PREDICTION_FAILURES))
    generate = Generator(service, predictor)

    @routes.post(
        "/{task}/generate",
        response_model=GenerateAnswer,
        openapi_extra=body_of(GenerateRequest),
        responses=streamed("events piece, and at last end, or error with problem JSON"),
    )
    async def generate_text(task: TaskOrAlias, request: Request) -> Response:
        """Continue a prompt with a task that is a language model."""

        async def read() -> TaskGeneration:
            return (await read_body(request, GenerateRequest)).generation()

        return generate(request, read, task)

    return routes


PROTOCOL = Protocol(router)
