"""Sentence embeddings from token vectors, as sentence-transformers computes them: pooling, projections, scaling."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ken_core.embedding import Dense, Embedding, Pooling

Vector = npt.NDArray[np.float64]


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
