"""Hugging Face's protocol for text, as ``InferenceClient.text_generation`` speaks it.

It is that of text-generation-inference. The client posts to the same path as for every other kind, so
`serving.api.huggingface` has the route.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import ConfigDict, Field

from serving.api.event_stream import event
from serving.api.generating import Answering, Continuation, Form, TaskGeneration
from serving.api.stops import Stops
from serving.api.tei import shape
from serving.api.unserved import WithForeignFields
from serving.errors import InvalidInputError
from serving.generation.pieces import Candidate, Piece, Token
from serving.generation.query import GenerationQuery, SamplingParameters
from serving.incoming import Free

_TOKENS = 100
"""What the client's documentation says is generated where a request does not say how much."""
_SAMPLING = ("temperature", "top_k", "top_p")


class TextGenerationParameters(WithForeignFields, SamplingParameters):
    """How much is generated, how, and what is told of it."""

    ONLY_AT = MappingProxyType(
        {
            "adapter_id": (),
            "best_of": (1,),
            "decoder_input_details": (False,),
            "grammar": (),
            "truncate": (),
            "typical_p": (1.0, 1),
            "watermark": (False,),
        }
    )

    do_sample: bool | None = Field(
        None, description="whether tokens are sampled; by default where temperature, top_k or top_p says how"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description=f"most tokens that are generated; by default {_TOKENS}, as far as the model takes them"
    )
    return_full_text: bool = Field(False, description="whether the prompt is repeated before the text")
    stop: Stops = Field([], description="texts that end the text and are no part of it")
    stop_sequences: Stops = Field([], description="the same as stop, and its older name")
    details: bool = Field(False, description="whether the tokens are told")
    top_n_tokens: int | None = Field(
        None, ge=1, le=5, description="how many of the likeliest tokens are told at each place"
    )

    @property
    def samples(self) -> bool:
        return self.do_sample or any(getattr(self, name) is not None for name in _SAMPLING)

    def sampling(self) -> SamplingParameters:
        told = self.model_dump(include=set(SamplingParameters.model_fields), exclude_unset=True)
        if self.do_sample is False and not self.samples:
            told["temperature"] = 0.0  # whatever the task's own settings say
        return SamplingParameters(**told)


class TextGenerationRequest(WithForeignFields):
    """A prompt to continue."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": "The rain in", "parameters": {"max_new_tokens": 24}}]},
    )

    inputs: str
    parameters: TextGenerationParameters = TextGenerationParameters.model_validate({})
    stream: bool = Field(False, description="whether the text is sent as it comes, as server-sent events")
    options: Free = Field({}, description="options of Hugging Face's own queue and cache, without effect here")

    def generation(self) -> TaskGeneration:
        asked = self.parameters
        if asked.stop and asked.stop_sequences:
            raise InvalidInputError("found it beside stop, which means the same; send one of them", at="stop_sequences")
        tells = asked.details or self.stream
        query = GenerationQuery(
            prompts=[self.inputs],
            sampling=asked.sampling(),
            max_tokens=asked.max_new_tokens,
            usual_tokens=_TOKENS,
            stop=tuple(asked.stop or asked.stop_sequences),
            logprobs=(asked.top_n_tokens or 0) if tells else None,
            sampled=asked.samples,
        )
        return TaskGeneration(query, lambda answering: TextGenerationForm(answering, asked), self.stream, _NAMES)


_NAMES: Mapping[str, str] = {"prompts": "inputs", "max_tokens": "parameters.max_new_tokens", "model": "task"}
_FINISHES = {"length": "length", "stop": "eos_token"}


class TextGenerationForm(Form):
    """A text, or an event a token, the last of which has the whole text too."""

    shape = staticmethod(shape)

    def __init__(self, answering: Answering, asked: TextGenerationParameters) -> None:
        self._generation = answering.generation
        self._asked = asked
        self._whole = Continuation()

    def whole(self, continuations: Sequence[Continuation]) -> Any:
        (one,) = continuations
        answer: dict[str, Any] = {"generated_text": self._text(one)}
        if self._asked.details:
            tops = {"top_tokens": [self._likeliest(token) for token in one.tokens]} if self._asked.top_n_tokens else {}
            tokens = [_token(token, token.text) for token in one.tokens]
            answer["details"] = {**self._details(one), "prefill": [], "tokens": tokens, **tops}
        return [answer]

    def events(self, piece: Piece) -> bytes:
        """A client puts the tokens' texts together, so the piece's text is that of its last token."""
        before = len(self._whole.tokens)
        self._whole.add(piece)
        texts = [*[""] * (len(piece.tokens) - 1), piece.text]
        made = [
            {"index": before + number, "token": _token(token, text), **self._tops(token), "generated_text": None}
            for number, (token, text) in enumerate(zip(piece.tokens, texts, strict=True), start=1)
        ]
        if piece.finish is not None and made:
            made[-1] |= {"generated_text": self._text(self._whole), "details": self._details(self._whole)}
        return b"".join(event({"details": None, **one}) for one in made)

    def _text(self, one: Continuation) -> str:
        return (self._generation.prompt_text(0) if self._asked.return_full_text else "") + one.text

    def _details(self, one: Continuation) -> dict[str, Any]:
        return {
            "finish_reason": "stop_sequence" if one.stop is not None else _FINISHES[str(one.finish)],
            "generated_tokens": self._generation.generated,
            "input_length": self._generation.prompt_tokens,
            "seed": self._asked.seed,
        }

    def _tops(self, token: Token) -> dict[str, Any]:
        return {"top_tokens": self._likeliest(token)} if self._asked.top_n_tokens else {}

    def _likeliest(self, token: Token) -> list[dict[str, Any]]:
        return [_token(one, one.text) for one in token.likeliest]


def _token(token: Token | Candidate, text: str) -> dict[str, Any]:
    return {"id": token.id, "text": text, "logprob": token.logprob, "special": token.special}
