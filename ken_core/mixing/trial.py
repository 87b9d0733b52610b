"""Which parameters of a backbone a mixed batch may change: those where mixing gives what changing the weights gives.

Every parameter is tried, because code may read a weight without calling its module (slices, tied layers, fused paths),
or call a module with something that is not the batch. Parameters that differ only in the number of their layer are
tried together, as far as memory goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from ken_core.decoding.decoder import Chunk
from ken_core.decoding.packed import PackedDecoder
from ken_core.kernels.correction import Shift, conv1d_shift, linear_shift
from ken_core.kernels.packed import Packed
from ken_core.mixing.changes import Changes, Factors, ModuleChange, can_change, is_embedding, is_linear, with_parameters
from ken_core.mixing.layout import ROWS, TOKENS, Layout
from ken_core.mixing.mixer import Group, Mixer, Mixture

_NUMBER = re.compile(r"\.\d+\.")
_MOST_AT_ONCE = 1 << 26
"""Elements of the parameters that are changed together; a larger one is changed alone."""
_CHANGED = 1
"""The text of the watched batch whose task changes something; its neighbours are the base's."""
_OF_EFFECT = 0.05
"""A mixed row may differ from the exchanged one by this share of what the change does."""
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""And by this share of the largest output."""


class Pass(Protocol):
    """A way to run the backbone over the watched texts."""

    rows: int
    """That a mixture counts for each text."""

    def alone(self) -> Sequence[torch.Tensor]:
        """Outputs with the weights as they are, float32, each with a part for each text."""

    def mixed(self, mixture: Mixture) -> Sequence[torch.Tensor]:
        """The same for a mixture."""


class PaddedPass:
    """One pass over all texts, padded to one length."""

    rows = 1

    def __init__(self, backbone: nn.Module, mixer: Mixer, batch: Mapping[str, torch.Tensor]) -> None:
        self._backbone = backbone
        self._mixer = mixer
        self._batch = batch

    def alone(self) -> Sequence[torch.Tensor]:
        return _outputs(self._backbone(**self._batch))

    def mixed(self, mixture: Mixture) -> Sequence[torch.Tensor]:
        return _outputs(self._mixer.run(mixture, self._batch))


class StepPass:
    """One decode step, of the texts one behind the other.

    Args:
        decoder: of the backbone.
        texts: the token ids of each.
    """

    rows = TOKENS

    def __init__(self, decoder: PackedDecoder, mixer: Mixer, texts: Sequence[Sequence[int]]) -> None:
        self._decoder = decoder
        self._mixer = mixer
        self._texts = texts

    def alone(self) -> Sequence[torch.Tensor]:
        output = self._decoder.run([Chunk(text, self._decoder.start()) for text in self._texts])
        return [output[0].view(ROWS, TOKENS, -1).float()]

    def mixed(self, mixture: Mixture) -> Sequence[torch.Tensor]:
        with self._mixer.mixing(mixture):
            return self.alone()


def mixable(backbone: nn.Module, mixer: Mixer, layouts: Mapping[str, Layout], way: Pass) -> dict[str, str]:
    """Why a parameter cannot be changed by a mixture, by name; those that can are left out.

    Modules that do not compute all rows at once are taken out of `mixer.stacking`, and run once a task from then on.

    The weights must be the base's and nobody else's for that time.
    """
    refused = dict(_without_layout(backbone, layouts))
    weights = dict(backbone.named_parameters())
    plain = way.alone()
    for names in _alike({name: weight for name, weight in weights.items() if name not in refused}):
        alike = {name: weights[name] for name in names}
        why = _try(backbone, alike, way, plain)
        if why and (stacked := mixer.stacking & {name.rpartition(".")[0] for name in names}):
            mixer.stacking -= stacked
            why = _try(backbone, alike, way, plain)
        refused |= dict.fromkeys(names, why) if why else {}
    return refused


def _without_layout(backbone: nn.Module, layouts: Mapping[str, Layout]) -> Iterator[tuple[str, str]]:
    for name, _ in backbone.named_parameters():
        module = name.rpartition(".")[0]
        kind = type(backbone.get_submodule(module)).__name__
        if module not in layouts:
            yield name, f"its {kind} is not called with the batch's rows alone"
        elif not can_change(backbone.get_submodule(module)):
            yield name, f"its {kind} is neither a linear layer nor an embedding, and too large for a copy a task"


def _alike(weights: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names that differ only in the number of their layer, in parts that take little memory to change."""
    found: dict[str, list[list[str]]] = {}
    for name in weights:
        parts = found.setdefault(_NUMBER.sub(".*.", f".{name}"), [[]])
        if sum(weights[other].numel() for other in (*parts[-1], name)) > _MOST_AT_ONCE and parts[-1]:
            parts.append([])
        parts[-1].append(name)
    return [part for parts in found.values() for part in parts]


def _try(backbone: nn.Module, weights: Mapping[str, torch.Tensor], way: Pass, plain: Sequence[torch.Tensor]) -> str:
    """Change some parameters in both ways; empty where one text, and it alone, comes out as it should."""
    changes, tuned = _synthetic(backbone, weights)
    texts: Sequence[tuple[Changes, int]] = (({}, _CHANGED), (changes, 1), ({}, ROWS - _CHANGED - 1))
    try:
        mixed = way.mixed(Mixture([Group(changed, count * way.rows) for changed, count in texts]))
        with _pointed(weights, tuned):
            exchanged = way.alone()
    except Exception as error:
        return f"a mixed batch fails on it: {error}"
    rows = [i for i in range(ROWS) if i != _CHANGED]
    for base, ours, theirs in zip(plain, mixed, exchanged, strict=True):
        effect = float((theirs - base).abs().max())
        allowed = _OF_EFFECT * effect + _ROUNDING.get(next(iter(weights.values())).dtype, 1e-4) * float(
            base.abs().max()
        )
        if float((ours[_CHANGED] - theirs[_CHANGED]).abs().max()) > allowed:
            return "a mixed batch does not answer as the exchanged weights do"
        if float((ours[rows] - base[rows]).abs().max()) > allowed:
            return "changing it for one row of a batch changes others"
    return ""


def _synthetic(
    backbone: nn.Module, weights: Mapping[str, torch.Tensor]
) -> tuple[dict[str, ModuleChange], dict[str, torch.Tensor]]:
    """A change as large as the parameters themselves, as a mixture has it and as new parameters."""
    generator = torch.Generator().manual_seed(0)
    tuned: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, weight in weights.items():
        place, _, key = name.rpartition(".")
        module, ours = backbone.get_submodule(place), parts.setdefault(place, {})
        size = float(weight.detach().float().square().mean().sqrt()) or 0.1
        if key == "weight" and (is_linear(module) or is_embedding(module)):
            column, row = (torch.randn(n, generator=generator).to(weight.device) for n in weight.shape)
            shift = size * column[:, None] * row
            first, second = (row, column) if type(module) is nn.Linear else (column, row)
            ours["factors"] = Factors((size * first[:, None]).to(weight.dtype), second[None].to(weight.dtype))
        else:
            shift = size * torch.randn(weight.shape, generator=generator).to(weight.device)
        tuned[name] = (weight.detach().float() + shift).to(weight.dtype)
        if key == "bias" and is_linear(module):
            ours["shift"] = _of_bias(module, shift)
        elif "factors" not in ours:
            ours["own"] = with_parameters(module, {key: tuned[name]})
    return {place: ModuleChange(**part) for place, part in parts.items()}, tuned


def _of_bias(module: nn.Module, bias: torch.Tensor) -> Shift:
    none = torch.empty(0, dtype=torch.int64, device=bias.device)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    values = torch.empty(0, device=bias.device, dtype=weight.dtype)
    place = (Packed(none, values, none.view(0, 4)), 0, (weight.shape[0], weight.shape[1]))
    found = linear_shift(*place, bias) if type(module) is nn.Linear else conv1d_shift(*place, bias)
    assert found is not None
    return found


@contextmanager
def _pointed(weights: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor]) -> Iterator[None]:
    before = {name: weight.data for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.data = tuned[name]
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.data = before[name]


def _outputs(output: Any) -> list[torch.Tensor]:
    """All tensors of an output that have a part for each row, float32."""
    return [t.float() for t in output.values() if torch.is_tensor(t) and t.shape[0] == ROWS]
