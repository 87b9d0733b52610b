"""Task heads grafted on the one shared backbone.

The full architecture is built on the meta device, so it costs no memory, once for all tasks of its kind; in a copy its
backbone is then replaced by the resident one and its head's parameters by the delta's.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ken_core.configs import restore
from ken_core.errors import DeltaFormatError


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
    restored = restore(dict(config))
    skeleton = _skeleton(architecture, restored)
    if skeleton.stands_on is not type(backbone):
        raise DeltaFormatError(
            f"{architecture} stands on a {skeleton.stands_on.__name__}, the base is a {type(backbone).__name__}"
        )
    if skeleton.model is None:
        return _adopt(backbone, architecture, head)
    model = copy.deepcopy(skeleton.model)
    model.config.id2label, model.config.label2id = restored.id2label, restored.label2id
    setattr(model, model.base_model_prefix, backbone)
    slots = {n: t for n, t in model.state_dict().items() if not n.startswith(f"{model.base_model_prefix}.")}
    _fill(model, architecture, slots, head, skeleton.ties)
    model.eval()
    model.requires_grad_(False)
    return model


@dataclass(frozen=True)
class _Skeleton:
    """An architecture without weights and without its backbone; `model` is None where that is all of it."""

    stands_on: type[nn.Module]
    model: PreTrainedModel | None
    ties: Mapping[str, str]


_skeletons: OrderedDict[str, _Skeleton] = OrderedDict()
"""By architecture and config but for the labels' names: tasks of one kind differ in those alone, as a rule."""
_MOST_SKELETONS = 64


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
    try:
        with torch.device("meta"):
            model: PreTrainedModel = model_class(config)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise DeltaFormatError(f"{architecture} cannot be built from the delta's config: {error}") from error
    stands_on = type(model.base_model)
    if model.base_model is model:
        return _Skeleton(stands_on, None, {})
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    setattr(model, model.base_model_prefix, nn.Identity())
    return _Skeleton(stands_on, model, ties)


def _adopt(backbone: nn.Module, architecture: str, head: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    if head:
        raise DeltaFormatError(f"{architecture} has no head, but the delta brings {sorted(head)[0]!r}")
    assert isinstance(backbone, PreTrainedModel)
    return backbone


def _fill(
    model: PreTrainedModel,
    architecture: str,
    slots: Mapping[str, torch.Tensor],
    head: Mapping[str, torch.Tensor],
    ties: Mapping[str, str],
) -> None:
    """Put the head's tensors into its slots. The backbone is shared by all tasks: no head may reach into it."""
    followers = {target: source for target, source in ties.items() if target not in head}
    followers |= {
        source: target for target, source in ties.items() if target in head and source in slots and source not in head
    }
    missing = sorted(n for n in slots if n not in head and n not in followers)
    if missing:
        raise DeltaFormatError(f"the delta brings no {missing[0]!r}, which the head of {architecture} needs")
    for name, tensor in head.items():
        slot = slots.get(name)
        if slot is None:
            raise DeltaFormatError(f"the head of {architecture} has no {name!r}")
        if slot.shape != tensor.shape or slot.is_floating_point() != tensor.is_floating_point():
            raise DeltaFormatError(
                f"{name!r} is {tensor.dtype} {list(tensor.shape)}, its config asks for {slot.dtype} {list(slot.shape)}"
            )
        module_name, _, key = name.rpartition(".")
        module = model.get_submodule(module_name)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[key] = tensor
    for name, source in followers.items():
        module_name, _, key = name.rpartition(".")
        model.get_submodule(module_name)._parameters[key] = model.get_parameter(source)
