"""OpenAI's protocol for text: ``/v1/chat/completions`` and ``/v1/completions``, with vLLM's further parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serving.api.bodies import body_of, read_body
from serving.api.chat_messages import Messages
from serving.api.failures import Shape
from serving.api.generating import Answering, Form, Generator, TaskGeneration
from serving.api.merging import ModelOrMerge
from serving.api.openai import failing, shape
from serving.api.openai_answers import ChatCompletion, ChatForm, Completion, CompletionForm, Wanted
from serving.api.openai_tool_answers import CallingForm
from serving.api.predicting import Predictor
from serving.api.problems import PREDICTION_FAILURES
from serving.api.prompts import Prompts
from serving.api.protocol import Protocol
from serving.api.response_format import WithGrammar
from serving.api.stops import StopIds, Stops
from serving.api.streamed import streamed
from serving.api.tool_choice import NamedTool, ToolChoice, Tools, functions_of
from serving.api.unserved import WithForeignFields
from serving.errors import InvalidInputError
from serving.generation.query import Chat, GenerationQuery, SamplingParameters
from serving.incoming import Free, Incoming
from serving.replica.continuing import MOST_CHOICES
from serving.service import Service

_TOKENS_OF_A_COMPLETION = 16
"""What OpenAI generates where a completion does not say how much. A chat goes on to its end."""


class StreamOptions(Incoming):
    """What a stream says beside the text."""

    include_usage: bool = Field(False, description="one last chunk, without choices, says how many tokens there were")
    continuous_usage_stats: bool = Field(
        False, description="with include_usage, every chunk says how many tokens there were so far"
    )
    include_obfuscation: bool | None = Field(None, description="without effect")


_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
    }
)
_ONLY_AT: Mapping[str, Sequence[Any]] = {
    "allowed_token_ids": (),
    "bad_words": ([],),
    "cache_salt": (),
    "detokenize": (True,),
    "extra_body": ({},),
    "guided_grammar": (),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1.0, 1),
    "mm_processor_kwargs": (),
    "priority": (0,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}
_ONLY_AT_IN_CHATS: Mapping[str, Sequence[Any]] = {
    **_ONLY_AT,
    "add_special_tokens": (False,),
    "audio": (),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_ONLY_AT_IN_COMPLETIONS: Mapping[str, Sequence[Any]] = {**_ONLY_AT, "add_special_tokens": (True,), "suffix": ("",)}


class TextRequest(WithForeignFields, WithGrammar, SamplingParameters):
    """What both kinds of requests for text have."""

    model: ModelOrMerge = Field(description="a task, or task@alias; or tasks to merge for this request")
    n: int = Field(1, ge=1, le=MOST_CHOICES, description="continuations of each prompt")
    best_of: int | None = Field(None, description="taken where it is equal to n")
    max_tokens: int | None = Field(None, ge=1, description="most tokens of each continuation")
    min_tokens: int = Field(0, ge=0, description="tokens before which no continuation ends")
    stop: Stops = Field([], description="texts that end a continuation and are no part of it")
    stop_token_ids: StopIds = Field([], description="tokens that end a continuation, in addition to the task's own")
    ignore_eos: bool = Field(False, description="whether the task's own end-of-text tokens end nothing")
    skip_special_tokens: bool = Field(True, description="whether special tokens are left out of the text")
    stream: bool = Field(False, description="whether the text is sent as it comes, as server-sent events")
    stream_options: StreamOptions = StreamOptions.model_validate({})
    user: str | None = Field(
        None, description="an end user, who gets the same version throughout while a route splits the task's traffic"
    )

    @abstractmethod
    def generation(self) -> TaskGeneration:
        """The request in the form that all protocols share.

        Raises:
            InvalidInputError: two fields contradict each other.
        """

    @property
    def sampling(self) -> SamplingParameters:
        return SamplingParameters(**self.model_dump(include=set(SamplingParameters.model_fields), exclude_unset=True))

    def wanted(self, logprobs: bool) -> Wanted:
        options = self.stream_options
        model = self.model if isinstance(self.model, str) else None
        return Wanted(model, options.include_usage, options.continuous_usage_stats, logprobs)

    def query(self, **own: Any) -> GenerationQuery:
        if self.best_of not in (None, self.n):
            raise InvalidInputError(
                f"found {self.best_of} and n {self.n}; of more continuations than are sent the best ones are not "
                "chosen here, so send the same number, or none",
                at="best_of",
            )
        return GenerationQuery(
            sampling=self.sampling,
            choices=self.n,
            min_tokens=self.min_tokens,
            stop=tuple(self.stop),
            stop_ids=tuple(self.stop_token_ids),
            ignores_end=self.ignore_eos,
            plain=self.skip_special_tokens,
            grammar=self.grammar(),
            **own,
        )


class ChatRequest(TextRequest):
    """Messages to answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "support", "messages": [{"role": "user", "content": "My parcel is late."}]}]
        },
    )

    WITHOUT_EFFECT = _WITHOUT_EFFECT
    ONLY_AT = _ONLY_AT_IN_CHATS

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, description="the same as max_tokens, and its newer name")
    logprobs: bool = Field(False, description="whether the log-probability of each token is told")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="how many of the likeliest tokens are told at each place"
    )
    add_generation_prompt: bool | None = Field(
        None, description="whether the prompt ends with the beginning of the answer; by default it does"
    )
    continue_final_message: bool = Field(
        False, description="whether the last message is the beginning of the answer, and is continued"
    )
    chat_template_kwargs: Free = Field({}, description="further variables of the task's chat template")
    tools: Tools = Field([], description="functions that the answer may call")
    tool_choice: ToolChoice = Field("auto", description="whether it may, must or must not call them, or which")
    parallel_tool_calls: bool = Field(True, description="whether one answer may have several calls")

    def generation(self, shape: Shape = shape) -> TaskGeneration:
        """As for completions.

        Args:
            shape: the form of failures.
        """
        self._check()
        functions = functions_of(self.tools, self.tool_choice, self.parallel_tool_calls)
        opens = not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt
        chat = Chat(
            [message.plain() for message in self.messages],
            None if functions is None else [tool.plain() for tool in self.tools],
            arguments=self.chat_template_kwargs,
            opens_answer=opens,
            continues_last=self.continue_final_message,
        )
        query = self.query(
            prompts=[chat],
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            functions=functions,
        )
        if functions is not None and functions.forced and query.grammar is not None:
            raise InvalidInputError(f"found it beside {query.grammar.at}; a text follows one of them", at="tool_choice")
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        names = {"prompts": "messages", "max_tokens": limit, "logprobs": "top_logprobs"}
        wanted = self.wanted(self.logprobs)

        def form(answering: Answering) -> Form:
            if functions is None:
                return ChatForm(answering, wanted, shape)
            return CallingForm(answering, wanted, functions, isinstance(self.tool_choice, NamedTool), shape)

        return TaskGeneration(query, form, self.stream, names, self.model, self.user)

    def _check(self) -> None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidInputError("expected logprobs to be true beside it", at="top_logprobs")
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidInputError(
                "found it beside add_generation_prompt; an answer is either begun or continued, so send one of them",
                at="continue_final_message",
            )
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise InvalidInputError(
                f"found {self.max_completion_tokens} beside max_tokens {self.max_tokens}, which means the same; send "
                "one of them",
                at="max_completion_tokens",
            )


def _number(plain: Any) -> Any:
    """Chats have a boolean of this name, which must not be read as a number."""
    if isinstance(plain, bool):
        raise PydanticCustomError("number", "expected a number from 0 to 5, or null for none; found a boolean")
    return plain


class CompletionRequest(TextRequest):
    """Prompts to continue."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "poems", "prompt": "The rain in", "max_tokens": 24, "stream": True}]},
    )

    WITHOUT_EFFECT = _WITHOUT_EFFECT
    ONLY_AT = _ONLY_AT_IN_COMPLETIONS

    prompt: Prompts = Field(
        description="texts, or token ids of the task's own tokenizer, to which no special token is added"
    )
    logprobs: Annotated[int, BeforeValidator(_number)] | None = Field(
        None, ge=0, le=5, description="how many of the likeliest tokens are told at each place; null: nothing is told"
    )
    echo: bool = Field(False, description="whether the prompt is repeated before the text; not with logprobs")

    def generation(self) -> TaskGeneration:
        if self.echo and self.logprobs is not None:
            raise InvalidInputError(
                "probabilities of the prompt's tokens are not told; send echo without logprobs", at="echo"
            )
        query = self.query(
            prompts=self.prompt,
            max_tokens=self.max_tokens,
            usual_tokens=_TOKENS_OF_A_COMPLETION,
            logprobs=self.logprobs,
        )
        wanted = self.wanted(self.logprobs is not None)
        echoes = self.n if self.echo else None
        return TaskGeneration(
            query,
            lambda answering: CompletionForm(answering, wanted, echoes),
            self.stream,
            {"prompts": "prompt"},
            self.model,
            self.user,
        )


def router(service: Service, predictor: Predictor) -> APIRouter:
    """Routes for text."""
    routes = APIRouter(prefix="/v1", tags=["openai"])
    generate = Generator(service, predictor)

    @routes.post(
        "/chat/completions",
        response_model=ChatCompletion,
        openapi_extra=body_of(ChatRequest),
        responses=failing(*PREDICTION_FAILURES) | streamed("data: {chunk}, and at last data: [DONE]"),
    )
    async def chat(request: Request) -> Response:
        """Answer the last of some messages with a task that is a language model."""

        async def read() -> TaskGeneration:
            return (await read_body(request, ChatRequest)).generation()

        return generate(request, read)

    @routes.post(
        "/completions",
        response_model=Completion,
        openapi_extra=body_of(CompletionRequest),
        responses=failing(*PREDICTION_FAILURES) | streamed("data: {chunk}, and at last data: [DONE]"),
    )
    async def complete(request: Request) -> Response:
        """Continue one or many prompts with a task that is a language model."""

        async def read() -> TaskGeneration:
            return (await read_body(request, CompletionRequest)).generation()

        return generate(request, read)

    return routes


PROTOCOL = Protocol(router, ("/v1/chat", "/v1/completions"), shape, failing)
