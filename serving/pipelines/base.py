"""What a task kind is: its inputs and parameters, and the way from one input to one answer.

An input becomes one or more encoded rows (`prepare`). Rows of many requests run through the backbone together, and the
task's own head makes results of its rows of the backbone's output (`run_head`). The results of an input's rows become
its answer (`present`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from transformers import PretrainedConfig
from transformers.utils.generic import ModelOutput

from ken_core.embedder import Embedder
from ken_core.errors import TextTooLongError
from ken_core.foreign import is_from_rust, reason
from ken_core.generation_settings import GenerationSettings
from ken_core.heads import Grafted
from ken_core.long_texts import Tokens
from ken_core.stand_in import Inputs
from ken_core.tokenization import Encoded, Encoder, Input, Part
from serving.errors import InternalError, InvalidInputError, TooLargeError
from serving.incoming import Incoming
from serving.workers.steps import Steps, together

Raw = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_MOST_TOKENS = 1 << 19
"""Most tokens of all rows that a kind makes of one request. The server's own limit is lower, but it counts rows only
after they were made."""
AT_ONCE = 1 << 12
"""Characters of texts that are encoded in one step: some 4 ms, beside which taking turns costs nothing."""


class Parameters(Incoming):
    """Per-request parameters; a kind adds its own."""

    truncation: bool = Field(True, description="cut inputs to the model's length; false refuses longer ones")
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="the end that is cut: only the one that the task's tokenizer cuts"
    )


class TextPair(Incoming):
    """Two texts judged together."""

    text: str
    text_pair: str


@dataclass(frozen=True)
class TaskSpec:
    """What a task's answers depend on beside its weights."""

    config: PretrainedConfig
    encoder: Encoder
    embedder: Embedder | None = None
    """None: the task has a head, or its folder does not say how token vectors become one vector."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """How the task generates where a request says nothing; of no meaning for tasks that generate nothing."""

    @property
    def nbytes(self) -> int:
        """Bytes that no other task shares: the embedder's."""
        return 0 if self.embedder is None else self.embedder.nbytes


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


@dataclass(frozen=True)
class Probe:
    """One input and its parameters as plain JSON."""

    input: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Pipeline(Protocol):
    """One task kind. Everything but `run_head` runs off the engine's threads."""

    @property
    def kind(self) -> str:
        """Its name on the wire, as Hugging Face calls it where it does."""

    @property
    def head(self) -> str:
        """The kind of head (`Manifest.kind`) it reads."""

    @property
    def encodes_by_tokenizer_alone(self) -> bool:
        """Whether `prepare` reads nothing of a task but its encoder, so that tasks with one encoder share rows."""

    @property
    def input(self) -> Any:
        """The type of one input, as pydantic checks it."""

    @property
    def parameters(self) -> type[Parameters]:
        """The model of its request parameters."""

    def probes(self, texts: Sequence[str]) -> Sequence[Probe]:
        """Questions that a new delta is tried with, made of any texts, of which there are at least two."""

    def prepare(self, inputs: Sequence[Any], task: TaskSpec, parameters: Any) -> Steps[list[Prepared]]:
        """Encode checked inputs, in steps of about `AT_ONCE` characters.

        Raises:
            InvalidInputError: an input this task cannot answer.
            TooLargeError: an input that is too long for the task, or that becomes too many rows.
        """

    def run_head(self, model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
        """Run a task's head on its rows of the backbone's output; one float32 array a row, on the host.

        Args:
            output: of the backbone, for `inputs`; None where the whole model has to run, see `Grafted.splits`.
            inputs: rows of this task alone, padded to the longest of them: int64 tensors of shape (rows, tokens).

        Raises:
            WholeModelNeededError: an output was given, but the head needs its whole model.
        """

    def present(self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: Any) -> Any:
        """One input's answer as JSON, from the results of its rows.

        Raises:
            InternalError: the model gave infinity or NaN.
        """


M = TypeVar("M", bound=BaseModel)


def check(model: type[M], plain: object) -> M:
    """Raises `InvalidInputError` naming the first place of untrusted JSON that does not fit the model."""
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        raise _refusal("body", error) from None


def check_side(parameters: Parameters, task: TaskSpec) -> None:
    """Raises `InvalidInputError` if the request wants inputs cut at the end that the task's tokenizer keeps."""
    side = task.encoder.truncation_side
    if parameters.truncation_side not in (None, side):
        raise InvalidInputError(
            f"found {parameters.truncation_side!r}, but the task's tokenizer cuts inputs on the {side}",
            at="truncation_side",
        )


def check_inputs(pipeline: Pipeline, inputs: Sequence[object]) -> list[Any]:
    """Inputs of a request as the kind takes them.

    Raises:
        InvalidInputError: an input has another form; the message names the first.
    """
    try:
        checked: list[Any] = _inputs_of(pipeline.input).validate_python(inputs)
    except ValidationError as error:
        raise _refusal(f"inputs of a {pipeline.kind} task", error) from None
    return checked


def encode_whole(texts: Sequence[Input], task: TaskSpec, parameters: Parameters) -> Steps[list[Prepared]]:
    """One row an input, cut to the model's length unless the parameters refuse that."""
    prepared: list[Prepared] = []
    sizes = [len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts]
    for some in together(sizes, AT_ONCE):
        yield sum(sizes[some.start : some.stop])
        with refusing_too_long(f"inputs.{some.start}"):
            rows = task.encoder(texts[some.start : some.stop])
        for where, row in zip(some, rows, strict=True):
            refuse_unfit(row, f"inputs.{where}", task, parameters)
            prepared.append(Prepared((row,), row.truncated))
    return prepared


def encode_parts(texts: Sequence[str], where: str, task: TaskSpec) -> Steps[list[Part]]:
    """Each text's tokens, to be put into rows with the tokens of another text.

    Args:
        where: the place of a text in the request, with ``{}`` for its number.
    """
    parts: list[Part] = []
    for some in together(list(map(len, texts)), AT_ONCE):
        chosen = texts[some.start : some.stop]
        yield sum(map(len, chosen))
        with refusing_too_long(where.format(some.start)):
            parts += task.encoder.parts(chosen)
    return parts


def encode_all(text: str, where: str, task: TaskSpec, budget: TokenBudget) -> Steps[Tokens]:
    """All of a text's tokens, however long it is, as far as the rows of one request may hold them."""
    tokens = Tokens()
    yield 0
    with refusing_too_long(where):
        parts = task.encoder.long_texts.parts(text)
    for part in parts:
        yield part.stop - part.start
        tokens.extend(task.encoder.long_texts.read(text, part).tokens)
        budget.refuse_more(len(tokens))
    return tokens


@contextmanager
def refusing_too_long(where: str) -> Iterator[None]:
    """Raises `TooLargeError` for a text that is too long to be encoded. Such a text is always encoded alone."""
    try:
        yield
    except TextTooLongError as error:
        raise TooLargeError(str(error), at=where) from None


def refuse_unfit(row: Encoded, where: str, task: TaskSpec, parameters: Parameters) -> None:
    """Raises `InvalidInputError` for a row that has no token, or was cut where the parameters refuse that."""
    if not len(row):
        raise InvalidInputError("the tokenizer finds no token in it; send a text that has one", at=where)
    if row.truncated and not parameters.truncation:
        most = task.encoder.max_length
        raise InvalidInputError(
            f"longer than the {most} tokens the model takes; shorten it, or allow truncation", at=where
        )


@contextmanager
def refusing_what_its_tokenizer_cannot_read() -> Iterator[None]:
    """Around all code that asks a task's tokenizer: there are tokenizers that fail, or panic, on certain texts.

    Raises:
        InvalidInputError: the tokenizer failed.
    """
    try:
        yield
    except BaseException as error:
        if not is_from_rust(error):
            raise
        raise InvalidInputError(
            f"the task's tokenizer cannot read one of them ({reason(error)}); send other texts, or publish the "
            "task with a sound tokenizer",
            at="inputs",
        ) from error


class TokenBudget:
    """Bounds the rows of a request whose inputs become many rows each, while the rows are made."""

    def __init__(self) -> None:
        self._left = _MOST_TOKENS

    def spend(self, row: Encoded) -> None:
        """Count a row; raises `TooLargeError` once all rows together have too many tokens."""
        self.refuse_more(len(row))
        self._left -= len(row)

    def refuse_more(self, tokens: int) -> None:
        """Raises `TooLargeError` if there is no room for so many tokens more."""
        if tokens > self._left:
            raise TooLargeError(
                f"the request becomes rows of more than {_MOST_TOKENS} tokens; send fewer or shorter inputs, "
                "or let windows overlap less"
            )


def finite(raw: Raw | Float64) -> Float64:
    """A result in float64.

    Raises:
        InternalError: the result holds infinity or NaN, which JSON has no numbers for; float16 overflows in this way.
    """
    if not np.isfinite(raw).all():
        raise InternalError("the model's answer to an input is not a number; its weights overflow on this text")
    return raw.astype(np.float64)


@cache
def _inputs_of(form: Any) -> TypeAdapter[list[Any]]:
    return TypeAdapter(list[form])


def _refusal(whole: str, error: ValidationError) -> InvalidInputError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or whole
    prefix = "inputs." if first["loc"] and isinstance(first["loc"][0], int) else ""
    found = ", found null" if first["input"] is None else ""
    return InvalidInputError(f"{first['msg']}{found}", at=f"{prefix}{where}")
