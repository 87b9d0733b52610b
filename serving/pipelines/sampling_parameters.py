"""How the tokens of a text are chosen, as requests say it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serving.incoming import Incoming

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
        ge=0.01,
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
