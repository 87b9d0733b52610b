"""Heads whose output layer shares its weight with the backbone's embedding, in mixed steps.

The arena holds the base's embedding. What such a layer computes with a task's own embedding is computed here for the
rows of all tasks at once, and given to Transformers' own code of each head where it calls the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from ken_core.decoding import few_rows
from ken_core.heads import Grafted
from ken_core.kernels import few_tokens
from ken_core.kernels.correction import Correction
from ken_core.mixing.changes import Factors, ModuleChange, is_embedding
from ken_core.mixing.mixer import Mixture
from ken_core.mixing.products import add_products


@dataclass(frozen=True)
class Tie:
    """An output layer of a head, and the module of the backbone whose weight it has."""

    layer: nn.Linear
    embedding: str


class UnmixableHeadError(Exception):
    """A head reads weights of the backbone in a way that cannot be mixed."""


def tie_of(model: Grafted, kind: type[ModelOutput]) -> Tie | None:
    """The layer of a model's head that shares the backbone's embedding; None where its head shares nothing.

    Args:
        kind: of the backbone's output.

    Raises:
        UnmixableHeadError: it shares something else.
    """
    backbone = model.whole.base_model
    if backbone is model.whole:
        return None
    shared = {id(parameter): name for name, parameter in backbone.named_parameters()}
    inside = {id(module) for module in backbone.modules()}
    found: list[Tie] = []
    for name, module in model.whole.named_modules():
        for key, parameter in module.named_parameters(recurse=False) if id(module) not in inside else ():
            if id(parameter) not in shared:
                continue
            embedding = shared[id(parameter)].rpartition(".")[0]
            looks_up = backbone.get_submodule(embedding)
            first = is_embedding(looks_up) and looks_up is model.whole.get_input_embeddings()
            if key != "weight" or type(module) is not nn.Linear or not first:
                raise UnmixableHeadError(f"its head's {name}.{key} is the backbone's {shared[id(parameter)]}")
            found.append(Tie(module, embedding))
    if len(found) > 1:
        raise UnmixableHeadError("several layers of its head share weights with the backbone")
    if found:
        _check(model, found[0], kind)
    return found[0] if found else None


def _check(model: Grafted, tie: Tie, kind: type[ModelOutput]) -> None:
    """Whether a head calls its output layer with the backbone's output, and nothing else with it."""
    embedding = tie.layer.weight
    states = torch.zeros(1, 2, embedding.shape[1], dtype=embedding.dtype, device=embedding.device)
    made = states.new_zeros(2, embedding.shape[0])
    ids = torch.zeros(1, 2, dtype=torch.int64, device=embedding.device)
    try:
        with torch.inference_mode(), giving(tie.layer, states, made):
            model(kind(last_hidden_state=states), {"input_ids": ids})
    except Exception as error:
        raise UnmixableHeadError(f"its head does not run on its own: {error}") from error


def tied_outputs(
    mixture: Mixture,
    embedding: str,
    weight: torch.Tensor,
    states: torch.Tensor,
    kernels: tuple[Correction, torch.Tensor],
    few: bool,
) -> list[torch.Tensor]:
    """What output layers that are tied to an embedding compute, without their biases.

    Args:
        mixture: of groups of rows of `states`.
        embedding: the name of its module.
        weight: the base's, (vocabulary, width).
        states: (rows, width).
        kernels: the corrections of the weight's dtype, and its arena.
        few: whether few rows are multiplied with each task's own weights (`few_tokens`).

    Returns:
        Of each group, (its rows, its vocabulary).
    """
    changes = mixture.parts(embedding).changes
    shifts = [change.shift for change in changes]
    if few and mixture.has_few_tokens_of(embedding) and few_tokens.takes(weight):
        output = few_tokens.product(states, weight, mixture.tiles(embedding))
    else:
        output = few_rows.product(states, weight) if few else functional.linear(states, weight)
        if any(shifts):
            correct, arena = kernels
            correct.linear(output, mixture.tokens(states, states, correct), arena, shifts)
    turned = [None if change.factors is None else _turned(change.factors) for change in changes]
    add_products(output, states, mixture.with_rows(turned))
    return [_of_group(change, output, states, rows) for rows, change in mixture.with_rows(changes)]


def _of_group(change: ModuleChange, output: torch.Tensor, states: torch.Tensor, rows: slice) -> torch.Tensor:
    """An embedding of another size makes another number of outputs."""
    if change.own is None:
        return output[rows]
    return functional.linear(states[rows], change.own.weight)  # type: ignore[arg-type]


def _turned(factors: Factors) -> Factors:
    """A shift of an embedding, as a linear layer with the same weight has it."""
    return Factors(factors.up.T, factors.down.T, factors.sizes)


@contextmanager
def giving(layer: nn.Linear, states: torch.Tensor, output: torch.Tensor) -> Iterator[None]:
    """Within it, a layer gives `output` and its bias for exactly these states. Nobody else may call it meanwhile."""

    def forward(given: torch.Tensor) -> torch.Tensor:
        if given.shape != states.shape or given.data_ptr() != states.data_ptr():
            raise RuntimeError("a head calls its output layer with something else than the backbone's output")
        made = output.view(*given.shape[:-1], -1)
        return made if layer.bias is None else made + layer.bias

    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        del vars(layer)["forward"]
