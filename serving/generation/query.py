"""What a request wants generated, in the form that all protocols share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from serving.incoming import Incoming
from serving.pipelines.token_ids import TokenIds

MOST_BIASES = 1024
"""Tokens whose logits one request may change."""


class SamplingParameters(Incoming):
    """How tokens are chosen, under the names that clients of several protocols use. What is not set, the task's own
    generation_config.json decides, then the protocol."""

    temperature: float | None = Field(
        None, ge=0, le=100, allow_inf_nan=False, description="divides the logits; 0 always takes the likeliest token"
    )
    top_p: float | None = Field(None, gt=0, le=1, description="only the likeliest tokens that have this probability")
    top_k: int | None = Field(None, ge=-1, description="only so many of the likeliest tokens; 0 and -1: all of them")
    min_p: float | None = Field(
        None, ge=0, le=1, description="only tokens with at least this share of the likeliest token's probability"
    )
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        le=100,
        description="divides positive logits of tokens that the text has already, and multiplies negative ones",
    )
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="taken from the logits of tokens that were generated already"
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="taken from the logits of tokens for each time that they were generated"
    )
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MOST_BIASES, description="added to the logits of tokens, by their ids"
    )
    seed: int | None = Field(
        None, ge=-(1 << 63), lt=1 << 63, description="the same seed gives the same text; by default a random one"
    )


@dataclass(frozen=True)
class Chat:
    """Messages from which the task's own chat template makes a prompt.

    Attributes:
        messages: each with a ``role`` and usually a ``content``; plain JSON as the template expects it.
        tools: that the template may describe; None: none.
        arguments: further variables of the template.
        opens_answer: whether the prompt ends with the beginning of the assistant's answer.
        continues_last: whether the last message is the beginning of the answer.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    opens_answer: bool = True
    continues_last: bool = False


Prompt = str | TokenIds | Chat
"""A text (special tokens are added as the tokenizer does by itself), token ids of the task's own tokenizer (nothing is
added), or a chat."""


@dataclass(frozen=True)
class GenerationQuery:
    """What a request wants generated.

    Attributes:
        prompts: each of them is continued by itself.
        choices: continuations of each prompt.
        max_tokens: of each continuation; None: as many as the model takes after the prompt.
        min_tokens: before which no token ends a continuation.
        stop: texts that end a continuation. They are no part of it.
        stop_ids: tokens that end a continuation, in addition to the task's own.
        ignores_end: whether the task's own end-of-text tokens do not end it.
        logprobs: how many likeliest tokens to tell at each place, beside the chosen one; None: no probabilities.
        sampled: whether tokens are sampled where neither the request nor the task says anything.
        plain: whether special tokens are left out of the text.
    """

    prompts: Sequence[Prompt]
    sampling: SamplingParameters = SamplingParameters()
    choices: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignores_end: bool = False
    logprobs: int | None = None
    sampled: bool = True
    plain: bool = True
