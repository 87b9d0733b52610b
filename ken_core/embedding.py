"""Sentence embeddings from token vectors, as sentence-transformers computes them: pooling, projections, scaling.

`Embedding` is a delta's description of the computation, `Embedder` performs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from torch import nn

Vector = npt.NDArray[np.float64]
Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "last"]
Activation = Literal[
    "Identity", "Tanh", "ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Sigmoid",
    "LogSigmoid", "Hardsigmoid", "Hardswish", "Hardtanh", "Softplus", "Softsign", "Tanhshrink",
]  # fmt: skip
"""The activations of torch.nn that work on each number alone and take no argument."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

_LONGEST_PROMPT = 4096
PromptText = Annotated[str, StringConstraints(max_length=_LONGEST_PROMPT)]
PromptName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Width = Annotated[int, Field(gt=0, le=1 << 20)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dense(_Strict):
    """A linear layer with an activation; its weights are the delta's `projections`."""

    inputs: Width
    outputs: Width
    bias: bool
    activation: Activation
    residual: bool = False
    """Whether the input is added to the output; where their widths differ, a further matrix projects the input."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the layer's weights, by the names that sentence-transformers gives them."""
        matrix = (self.outputs, self.inputs)
        return {
            "linear.weight": matrix,
            **({"linear.bias": (self.outputs,)} if self.bias else {}),
            **({"residual.weight": matrix} if self.residual and self.inputs != self.outputs else {}),
        }


class Embedding(_Strict):
    """How a task's embeddings are computed from token vectors."""

    pooling: Annotated[tuple[Pooling, ...], Field(min_length=1, max_length=8)]
    """Where there are several, their vectors are concatenated in this order."""
    include_prompt: bool = True
    """Whether the tokens of a prompt are pooled too."""
    modules: Annotated[tuple[Dense | Literal["normalize"], ...], Field(max_length=8)] = ()
    """The steps after pooling, in order."""
    dimensions: Width | None = None
    """How many numbers of the result are kept, from its start; None: all of them."""
    max_length: Annotated[int, Field(gt=0, le=1 << 20)] | None = None
    """The most tokens of a text, in place of the tokenizer's own limit."""
    lowercase: bool = False
    """Whether texts are lower-cased before the tokenizer sees them."""
    prompts: Annotated[dict[PromptName, PromptText], Field(max_length=64)] = {}
    default_prompt: PromptName | None = None
    similarity: Literal["cosine", "dot", "euclidean", "manhattan"] | None = None
    """How the embeddings are meant to be compared; clients do that, this package does not."""

    @model_validator(mode="after")
    def _fits_together(self) -> Embedding:
        if self.default_prompt is not None and self.default_prompt not in self.prompts:
            raise ValueError(f"the default prompt {self.default_prompt!r} is not among the prompts")
        width = None
        for dense in self.dense.values():
            if width not in (None, dense.inputs):
                raise ValueError(f"a projection takes {dense.inputs} numbers, the one before it gives {width}")
            width = dense.outputs
        return self

    @property
    def dense(self) -> dict[int, Dense]:
        """The projections among the modules, by their place in `modules`."""
        return {i: module for i, module in enumerate(self.modules) if isinstance(module, Dense)}

    @property
    def takes(self) -> int | None:
        """The width of the vectors that the first projection takes; None where there is no projection."""
        return next((dense.inputs for dense in self.dense.values()), None)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all projections' tensors by name; ``1.linear.weight`` belongs to the module at place 1."""
        return {f"{i}.{name}": shape for i, dense in self.dense.items() for name, shape in dense.shapes.items()}

    @property
    def normalizes(self) -> bool:
        """Whether the embeddings have length 1 before they are cut to `dimensions`."""
        return bool(self.modules) and self.modules[-1] == "normalize"


class Embedder:
    """Computes embeddings from token vectors; safe to call from many threads.

    Args:
        embedding: describes the computation.
        projections: the weights of the description's `Dense` modules, of any floating dtype on the CPU, by the names in
            `Embedding.shapes`.
    """

    def __init__(self, embedding: Embedding, projections: Mapping[str, torch.Tensor]) -> None:
        self.embedding = embedding
        self._weights = {
            name: tensor.to(torch.float32, copy=True) for name, tensor in projections.items()
        }  # copies, as a head's weights are: the delta they came with may leave the host's memory

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._weights.values())

    def __call__(
        self,
        states: Vector,
        *,
        skip: int = 0,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> Vector:
        """One text's embedding, shape (width,).

        Args:
            states: the text's token vectors, special tokens included, shape (tokens, width).
            skip: how many tokens at the start belong to a prompt that is not pooled; fewer than there are tokens.
            pooling: replaces the task's own; where there are projections, it must give the width they take.
            normalize: whether to scale to length 1, in place of the task's own choice; scaling comes after cutting.
            dimensions: how many numbers to keep, from the start. They are cut off before scaling, as models trained for
                shorter embeddings expect.
        """
        own = self.embedding
        modules = own.modules[:-1] if own.normalizes else own.modules
        vector = torch.from_numpy(pooled(states, (pooling,) if pooling else own.pooling, skip))
        for i, module in enumerate(modules):
            vector = self._project(i, module, vector) if isinstance(module, Dense) else _scaled(vector)
        vector = vector[:dimensions]
        if own.normalizes if normalize is None else normalize:
            vector = _scaled(vector)
        if dimensions is None and own.dimensions is not None and own.dimensions < len(vector):
            vector = vector[: own.dimensions]
            vector = _scaled(vector) if normalize else vector
        found: Vector = vector.numpy()
        return found

    def width(self, states: int, pooling: Pooling | None = None) -> int:
        """How many numbers an embedding has that is computed from token vectors of width `states`."""
        dense = list(self.embedding.dense.values())
        whole = dense[-1].outputs if dense else states * (1 if pooling else len(self.embedding.pooling))
        return min(whole, self.embedding.dimensions or whole)

    def _project(self, i: int, dense: Dense, vector: torch.Tensor) -> torch.Tensor:
        """Apply a projection to a vector, in float32, as the layer was trained."""
        given = vector.float()
        linear = nn.functional.linear(given, self._weights[f"{i}.linear.weight"], self._weights.get(f"{i}.linear.bias"))
        projected: torch.Tensor = getattr(nn, dense.activation)()(linear)
        if dense.residual:
            matrix = self._weights.get(f"{i}.residual.weight")
            projected = projected + (given if matrix is None else nn.functional.linear(given, matrix))
        return projected.double()


PLAIN = Embedding(pooling=("mean",))
"""The embedding that sentence-transformers computes for a folder that does not describe one."""


def pooled(states: Vector, pooling: tuple[Pooling, ...], skip: int = 0) -> Vector:
    """Pool token vectors into one vector; the results of several ways of pooling are concatenated.

    Special tokens count like all others.

    Args:
        states: shape (tokens, width).
        skip: how many tokens at the start are left out.
    """
    kept = states[skip:]
    return np.concatenate([_pool(kept, how, skip) for how in pooling])


def _pool(kept: Vector, how: Pooling, skip: int) -> Vector:
    match how:
        case "cls":
            return np.asarray(kept[0])
        case "last":
            return np.asarray(kept[-1])
        case "max":
            return np.asarray(kept.max(axis=0))
        case "mean":
            return np.asarray(kept.mean(axis=0))
        case "mean_sqrt_len_tokens":
            return np.asarray(kept.sum(axis=0) / np.sqrt(len(kept)))
        case "weightedmean":  # later tokens weigh more; tokens that are left out still count as positions
            return np.asarray(np.average(kept, axis=0, weights=np.arange(skip + 1, skip + 1 + len(kept))))


def _scaled(vector: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(vector, dim=0)
