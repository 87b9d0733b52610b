"""Tensors of the Open Inference Protocol: from a request's tensors to texts, and from a kind's outputs to tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, get_args

import orjson
from pydantic import BaseModel, Field

from serving.errors import BadRequestError
from serving.incoming import Free, Incoming
from serving.kinds import KINDS
from serving.pipelines import Pipeline

_LISTS = frozenset({"texts"})
"""Tensors that have many elements for each input."""


class BinaryTensorError(BadRequestError):
    """The request uses the binary tensor extension."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"found {found}: the server does not read or write binary tensors; use JSON, in tritonclient with "
            "binary_data=False for each InferInput.set_data_from_numpy and each InferRequestedOutput"
        )


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 for a dimension that the request decides")


class RequestInput(Incoming):
    """A tensor of texts."""

    name: str = Field(max_length=128)
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=8)
    datatype: str
    parameters: Free = Field({})
    data: list[Any] | None = Field(None, description="elements row by row, flat or nested as the shape is")


class RequestOutput(Incoming):
    name: str = Field(max_length=128)
    parameters: Free = Field({})


class ResponseOutput(TensorMetadata):
    data: list[Any] = Field(description="elements row by row, flat")


@dataclass(frozen=True)
class Output:
    """A tensor made of a kind's outputs.

    Attributes:
        rank: 1: one value for each input; 2: a row of values for each input, all rows of one length.
        values: gives the values of all inputs' outputs, row by row.
    """

    name: str
    datatype: str
    rank: int
    values: Callable[[Sequence[Any]], Iterable[object]]

    @property
    def metadata(self) -> TensorMetadata:
        return TensorMetadata(name=self.name, datatype=self.datatype, shape=[-1] * self.rank)

    def tensor(self, answers: Sequence[Any]) -> dict[str, Any]:
        """The tensor as JSON, see `ResponseOutput`."""
        values = list(self.values(answers))
        shape = [len(answers)] if self.rank == 1 else [len(answers), len(values) // len(answers)]
        return {"name": self.name, "datatype": self.datatype, "shape": shape, "data": values}


_JSON = Output("json", "BYTES", 1, lambda answers: (orjson.dumps(a).decode() for a in answers))
"""Whole outputs as JSON texts, which every kind has."""


def outputs_of(kind: str) -> tuple[Output, ...]:
    """The tensors in which a kind's outputs can be returned."""
    columns = KINDS[kind].columns
    return (*(Output(column.name, column.datatype, column.rank, column.values) for column in columns), _JSON)


def check_outputs(asked: Iterable[RequestOutput]) -> None:
    """Raises `BadRequestError`: no kind has such an output, or the server does not write the form that is asked for."""
    known = {output.name for kind in KINDS for output in outputs_of(kind)}
    for output in asked:
        if output.name not in known:
            raise _unknown_output(output.name, sorted(known))
        parameters = dict(output.parameters)
        if parameters.pop("binary_data", False):
            raise BinaryTensorError(f"binary_data for output {output.name!r}")
        _refuse_parameters(f"output {output.name!r}", parameters)


def chosen(asked: Sequence[RequestOutput] | None, kind: str) -> list[Output]:
    """The outputs that a request asks for; all if `asked` is None.

    Raises:
        BadRequestError: the kind has no such output.
    """
    outputs = {output.name: output for output in outputs_of(kind)}
    names = outputs if asked is None else [output.name for output in asked]
    for name in names:
        if name not in outputs:
            raise _unknown_output(name, outputs)
    return [outputs[name] for name in names]


def _unknown_output(name: str, known: Iterable[str]) -> BadRequestError:
    return BadRequestError(f"there is no output {name!r}; there are {', '.join(known)}")


def inputs_of(pipeline: Pipeline) -> list[TensorMetadata]:
    """One tensor of texts if a kind's input may be a text, else one for each field that its input must have."""
    forms = get_args(pipeline.input) or (pipeline.input,)
    if str in forms:
        return [TensorMetadata(name="text", datatype="BYTES", shape=[-1])]
    fields = (name for name, field in forms[0].model_fields.items() if field.is_required())
    return [TensorMetadata(name=name, datatype="BYTES", shape=[-1, -1] if name in _LISTS else [-1]) for name in fields]


def items_of(tensors: Sequence[RequestInput]) -> Sequence[object]:
    """A kind's inputs: texts of a single tensor, or objects with a field for each of several tensors.

    Raises:
        BadRequestError: the tensors do not hold that.
    """
    for tensor in tensors:
        _check_tensor(tensor)
    if len(tensors) == 1:
        return _texts(tensors[0])
    columns = {t.name: _lists(t) if t.name in _LISTS else _texts(t) for t in tensors}
    if len(columns) < len(tensors):
        raise BadRequestError(f"two tensors have the same name: found {', '.join(t.name for t in tensors)}")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} for {length}" for name, length in lengths.items())
        raise BadRequestError(f"the tensors have different numbers of inputs: {found}; expected one number")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _check_tensor(tensor: RequestInput) -> None:
    where = f"input {tensor.name!r}"
    if "binary_data_size" in tensor.parameters:
        raise BinaryTensorError(f"binary_data_size for {where}")
    _refuse_parameters(where, tensor.parameters)
    if tensor.datatype != "BYTES":
        raise BadRequestError(f"{where} has datatype {tensor.datatype[:40]!r}; expected BYTES, holding texts")
    if tensor.data is None:
        raise BadRequestError(f"{where} has no data; expected a list of texts")


def _texts(tensor: RequestInput) -> list[str]:
    """One text for each input."""
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]):
        raise _unfit(tensor, "[n] or [n, 1]")
    return _values(tensor)


def _lists(tensor: RequestInput) -> list[list[str]]:
    """A list of texts for each input. A tensor of one dimension is the list of one input."""
    if len(tensor.shape) not in (1, 2) or not tensor.shape[-1]:
        raise _unfit(tensor, "[n, k], or [k] for one input, k at least 1")
    values, (*_, each) = _values(tensor), tensor.shape
    count = tensor.shape[0] if len(tensor.shape) == 2 else 1
    return [values[i * each : (i + 1) * each] for i in range(count)]


def _unfit(tensor: RequestInput, expected: str) -> BadRequestError:
    return BadRequestError(f"input {tensor.name!r} has shape {tensor.shape}; expected {expected}")


def _values(tensor: RequestInput) -> list[str]:
    """A tensor's texts row by row, whether they came flat or nested."""
    values = tensor.data or []
    if len(tensor.shape) == 2 and any(isinstance(row, list) for row in values):
        rows, each = tensor.shape
        if len(values) != rows or any(not isinstance(row, list) or len(row) != each for row in values):
            raise BadRequestError(f"input {tensor.name!r} has data of another shape than {tensor.shape}")
        values = list(chain.from_iterable(values))
    expected = math.prod(tensor.shape)
    if len(values) != expected:
        raise BadRequestError(
            f"input {tensor.name!r} has {len(values)} elements; its shape {tensor.shape} expects {expected}"
        )
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise BadRequestError(f"input {tensor.name!r} has {type(value).__name__} at {i}; expected a text")
    return values


def _refuse_parameters(where: str, found: Mapping[str, Any]) -> None:
    if found:
        raise BadRequestError(
            f"{where} has the parameter {next(iter(found))!r}, which the server does not know; leave it out"
        )
