"""Task heads grafted on the one shared backbone.

The full architecture is built on the meta device, where it costs no memory, once for all tasks whose configs differ in
label names alone. Each task gets a copy, with the resident backbone in the backbone's place and the delta's tensors in
the head's places. The head can also run apart, on an output that the backbone has computed before (`Grafted`).
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from ken_core.configs import answering, of_no_dtype, restore
from ken_core.errors import DeltaFormatError, WholeModelNeededError
from ken_core.foreign import reading
from ken_core.stand_in import Inputs, StandIn, answers_from_output


class Grafted:
    """A task's model on the shared backbone, and its head, which runs apart from the backbone where it can.

    Safe to call from several threads at once.

    Attributes:
        whole: the model, with the shared backbone itself in its place.
        splits: whether the head can answer from an output of the backbone. It cannot where it asks its backbone for
            something else than its output for the batch; then the whole model has to run. A probe finds that out when
            the architecture is first built, a batch whatever the probe could not see.
    """

    def __init__(self, whole: PreTrainedModel, splits: bool) -> None:
        self.whole = whole
        self.splits = splits
        self._head: PreTrainedModel | None = None
        if splits and whole.base_model is not whole:
            self._stand_in = StandIn(type(whole.base_model))
            self._head = _with_another_backbone(whole, self._stand_in)

    @property
    def config(self) -> PretrainedConfig:
        return self.whole.config

    def __call__(self, output: ModelOutput | None, inputs: Inputs) -> Any:
        """Run Transformers' own code of the head on an output of the backbone for the same inputs.

        Gives the architecture's own `ModelOutput`, as its `forward` does; the backbone's where there is no head.

        Args:
            output: of the backbone, for `inputs`. None: run the whole model, with the weights as they are.

        Raises:
            WholeModelNeededError: the head needs its whole model, though an output was given.
        """
        if output is None:
            return self.whole(**inputs)
        if not self.splits:
            raise WholeModelNeededError(
                f"the head of {type(self.whole).__name__} needs its whole model; call it without the backbone's output"
            )
        if self._head is None:
            return output
        try:
            with self._stand_in.giving(output, inputs):
                return self._head(**inputs)
        except WholeModelNeededError:
            self.splits = False  # what it asked for now it will ask for again
            raise


def graft(
    backbone: nn.Module, architecture: str, config: Mapping[str, Any], head: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """A model of `architecture` whose backbone is `backbone` itself, in evaluation mode.

    Args:
        head: parameters and persistent buffers outside the backbone, by name in the whole model.

    Raises:
        DeltaFormatError: an unknown architecture, one whose backbone is of another class, or a head that does
            not fit it.
    """
    return graft_split(backbone, architecture, config, head).whole


def graft_split(
    backbone: nn.Module, architecture: str, config: Mapping[str, Any], head: Mapping[str, torch.Tensor]
) -> Grafted:
    """As `graft`; the model's head can also run apart from the backbone."""
    restored = restore(dict(config), getattr(backbone, "config", None))
    skeleton = _fitting(backbone, architecture, restored)
    _check(skeleton, architecture, {n: Claim(tuple(t.shape), t.is_floating_point()) for n, t in head.items()})
    if skeleton.model is None:
        assert isinstance(backbone, PreTrainedModel)
        return Grafted(backbone, splits=True)
    with reading(f"the delta's {architecture}"):
        model = copy.deepcopy(skeleton.model)
        model.config.id2label, model.config.label2id = restored.id2label, restored.label2id
        setattr(model, model.base_model_prefix, backbone)
        _fill(model, head, _followers(skeleton, head))
        model.eval()
        model.requires_grad_(False)
    return Grafted(model, skeleton.splits)


def check_head(backbone: nn.Module, architecture: str, config: PretrainedConfig, head: Mapping[str, Claim]) -> None:
    """Check what a file says of a head's tensors against the head itself, before any of them is read.

    Args:
        config: known to fit the backbone's: what is built here is as large as it says.

    Raises:
        DeltaFormatError: as `graft`.
    """
    _check(_fitting(backbone, architecture, config), architecture, head)


@dataclass(frozen=True)
class Claim:
    """What a file says of a tensor: its shape, and whether its elements are floating-point numbers."""

    shape: tuple[int, ...]
    is_floating: bool


@dataclass(frozen=True)
class _Skeleton:
    """An architecture without weights and without its backbone; `model` is None where it has no head.

    `splits` is `Grafted.splits`.
    """

    stands_on: type[nn.Module]
    model: PreTrainedModel | None
    slots: Mapping[str, Claim]
    """The tensors that its head has a place for."""
    ties: Mapping[str, str]
    splits: bool


_skeletons: OrderedDict[str, _Skeleton] = OrderedDict()
"""By architecture and config without label names: as a rule, tasks of one kind differ in label names alone."""
_MOST_SKELETONS = 64


def _fitting(backbone: nn.Module, architecture: str, config: PretrainedConfig) -> _Skeleton:
    """The skeleton of a delta's architecture, if it stands on this backbone."""
    with reading(f"the delta's {architecture}"):
        skeleton = _skeleton(architecture, config)
    if skeleton.stands_on is not type(backbone):
        raise DeltaFormatError(
            f"{architecture} stands on a {skeleton.stands_on.__name__}, the base is a {type(backbone).__name__}"
        )
    return skeleton


def _skeleton(architecture: str, config: PretrainedConfig) -> _Skeleton:
    unnamed = {k: v for k, v in config.to_dict().items() if k not in ("id2label", "label2id")}
    key = json.dumps([architecture, config.num_labels, unnamed], sort_keys=True, default=str)
    found = _skeletons.get(key)
    if found is None:
        found = _skeletons[key] = _build(architecture, config)
        while len(_skeletons) > _MOST_SKELETONS:
            _skeletons.popitem(last=False)
    return found


def _build(architecture: str, config: PretrainedConfig) -> _Skeleton:
    model_class = getattr(transformers, architecture, None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise DeltaFormatError(f"architecture {architecture!r} is not one this transformers knows")
    if model_class.config_class is not type(config) or not model_class.base_model_prefix:
        raise DeltaFormatError(f"architecture {architecture!r} does not go with a {config.model_type} config")
    with torch.device("meta"):
        model: PreTrainedModel = model_class(of_no_dtype(answering(copy.deepcopy(config))))
    stands_on = type(model.base_model)
    if model.base_model is model:
        return _Skeleton(stands_on, None, {}, {}, True)
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    splits = answers_from_output(model.eval(), model.base_model_prefix, stands_on)
    setattr(model, model.base_model_prefix, nn.Identity())
    slots = {n: Claim(tuple(t.shape), t.is_floating_point()) for n, t in model.state_dict().items()}
    return _Skeleton(stands_on, model, slots, ties, splits)


def _check(skeleton: _Skeleton, architecture: str, head: Mapping[str, Claim]) -> None:
    """Whether a head's tensors are those the skeleton needs. The backbone is shared: no head may reach into it."""
    if skeleton.model is None and head:
        raise DeltaFormatError(f"{architecture} has no head, but the delta brings {sorted(head)[0]!r}")
    followers = _followers(skeleton, head)
    missing = sorted(n for n in skeleton.slots if n not in head and n not in followers)
    if missing:
        raise DeltaFormatError(f"the delta brings no {missing[0]!r}, which the head of {architecture} needs")
    for name, claim in head.items():
        slot = skeleton.slots.get(name)
        if slot is None:
            raise DeltaFormatError(f"the head of {architecture} has no {name!r}")
        if slot != claim:
            raise DeltaFormatError(f"{name!r} is {_described(claim)}, its config asks for {_described(slot)}")


def _described(claim: Claim) -> str:
    return f"{'floating-point' if claim.is_floating else 'whole'} numbers {list(claim.shape)}"


def _followers(skeleton: _Skeleton, head: Collection[str]) -> dict[str, str]:
    """Tied parameters that the head does not bring itself, each with the one it takes its values from."""
    followers = {target: source for target, source in skeleton.ties.items() if target not in head}
    return followers | {
        source: target
        for target, source in skeleton.ties.items()
        if target in head and source in skeleton.slots and source not in head
    }


def _fill(model: PreTrainedModel, head: Mapping[str, torch.Tensor], followers: Mapping[str, str]) -> None:
    """Put the head's tensors into its slots."""
    for name, tensor in head.items():
        module_name, _, key = name.rpartition(".")
        module = model.get_submodule(module_name)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[key] = tensor
    for name, source in followers.items():
        module_name, _, key = name.rpartition(".")
        model.get_submodule(module_name)._parameters[key] = model.get_parameter(source)


def _with_another_backbone(model: PreTrainedModel, backbone: nn.Module) -> PreTrainedModel:
    """A model of the same modules and parameters but for its backbone."""
    other = copy.copy(model)
    other._modules = {**model._modules, model.base_model_prefix: backbone}
    return other
