"""What a request wants generated, in the form that all protocols share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.function_calls.functions import Functions
from serving.grammar.grammar import Described
from serving.pipelines.sampling_parameters import SamplingParameters
from serving.pipelines.token_ids import TokenIds

__all__ = ["Chat", "GenerationQuery", "Prompt", "SamplingParameters"]


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
        max_tokens: of each continuation, as the request says it; None: it says nothing.
        usual_tokens: of each continuation where the request says nothing, as far as the model takes so many; None: as
            many as it takes.
        min_tokens: before which no token ends a continuation.
        stop: texts that end a continuation. They are no part of it.
        stop_ids: tokens that end a continuation, in addition to the task's own.
        ignores_end: whether the task's own end-of-text tokens do not end it.
        logprobs: how many likeliest tokens to tell at each place, beside the chosen one; None: no probabilities.
        sampled: whether tokens are sampled where neither the request nor the task says anything.
        plain: whether special tokens are left out of the text.
        grammar: that each continuation follows.
        functions: that it may or must call.
    """

    prompts: Sequence[Prompt]
    sampling: SamplingParameters = field(default_factory=lambda: SamplingParameters.model_validate({}))
    choices: int = 1
    max_tokens: int | None = None
    usual_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignores_end: bool = False
    logprobs: int | None = None
    sampled: bool = True
    plain: bool = True
    grammar: Described | None = None
    functions: Functions | None = None
