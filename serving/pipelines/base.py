"""What a task kind is: its inputs and parameters, and the way from one input to one answer.

An input becomes one or more encoded rows (`prepare`), rows run through the model in batches that may hold rows of
many requests (`forward`), and the results of an input's rows become its answer (`present`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from transformers import PretrainedConfig, PreTrainedModel

from ken_core.tokenization import Encoded, Encoder, Input
from serving.errors import InvalidInputError

Raw = npt.NDArray[np.float32]


class Parameters(BaseModel):
    """Per-request parameters; a kind adds its own."""

    model_config = ConfigDict(extra="forbid")

    truncation: bool = Field(True, description="cut inputs to the model's length; false refuses longer ones")
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="the end that is cut: only the one that the task's tokenizer cuts"
    )


class TextPair(BaseModel):
    """Two texts judged together."""

    model_config = ConfigDict(extra="forbid")

    text: str
    text_pair: str


@dataclass(frozen=True)
class TaskSpec:
    """What of a task, beside its weights, its answers depend on."""

    config: PretrainedConfig
    encoder: Encoder
    pooling: str | None
    normalize: bool


@dataclass(frozen=True)
class Prepared:
    """One input, ready to run.

    Attributes:
        rows: in the order in which `Pipeline.present` gets their results.
        truncated: whether the input was cut.
        source: whatever `Pipeline.present` needs of the input itself.
    """

    rows: Sequence[Encoded]
    truncated: bool
    source: Any = None


class Pipeline(Protocol):
    """One task kind. Everything but `forward` runs off the thread that owns the weights."""

    @property
    def kind(self) -> str:
        """Its name on the wire, as Hugging Face calls it where it does."""

    @property
    def head(self) -> str:
        """The kind of head (`Manifest.kind`) it reads."""

    @property
    def input(self) -> Any:
        """The type of one input, as pydantic checks it."""

    @property
    def parameters(self) -> type[Parameters]:
        """The model of its request parameters."""

    def prepare(self, inputs: Sequence[Any], task: TaskSpec, parameters: Any) -> list[Prepared]:
        """Encode checked inputs.

        Raises:
            InvalidInputError: an input this task cannot answer.
        """

    def forward(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
        """Run a padded batch on the engine's thread; one float32 array a row, on the host."""

    def present(self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: Any) -> Any:
        """One input's answer as JSON, from the results of its rows."""


M = TypeVar("M", bound=BaseModel)


def check(model: type[M], plain: object) -> M:
    """Raises `InvalidInputError` naming the first place of untrusted JSON that does not fit the model."""
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        raise _refusal("body", error) from None


def check_side(parameters: Parameters, task: TaskSpec) -> None:
    """Raises `InvalidInputError` if inputs are to be cut at the end that the task's tokenizer keeps."""
    side = task.encoder.truncation_side
    if parameters.truncation_side not in (None, side):
        raise InvalidInputError(
            f"truncation_side: found {parameters.truncation_side!r}, but the task's tokenizer cuts inputs on the {side}"
        )


def check_inputs(pipeline: Pipeline, inputs: Sequence[object]) -> list[Any]:
    """Inputs of a request as the kind takes them.

    Raises:
        InvalidInputError: naming the first that is of another form.
    """
    try:
        checked: list[Any] = _inputs_of(pipeline.input).validate_python(inputs)
    except ValidationError as error:
        raise _refusal(f"inputs of a {pipeline.kind} task", error) from None
    return checked


def encode_whole(texts: Sequence[Input], task: TaskSpec, parameters: Parameters) -> list[Prepared]:
    """One row an input, cut to the model's length unless the parameters refuse that."""
    rows = task.encoder(texts)
    if not parameters.truncation:
        refuse_truncated([row.truncated for row in rows], task.encoder.max_length)
    return [Prepared((row,), row.truncated) for row in rows]


def refuse_truncated(truncated: Sequence[bool], most: int) -> None:
    """Raises `InvalidInputError` if any input would have to be cut."""
    if any(truncated):
        where = truncated.index(True)
        raise InvalidInputError(
            f"inputs.{where}: longer than the {most} tokens the model takes; shorten it, or allow truncation"
        )


@cache
def _inputs_of(form: Any) -> TypeAdapter[list[Any]]:
    return TypeAdapter(list[form])


def _refusal(whole: str, error: ValidationError) -> InvalidInputError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or whole
    prefix = "inputs." if first["loc"] and isinstance(first["loc"][0], int) else ""
    return InvalidInputError(f"{prefix}{where}: {first['msg']}")
