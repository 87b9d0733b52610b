"""Task heads grafted on the one shared backbone.

The full architecture is built on the meta device, so it costs no memory; its backbone is then replaced by the
resident one and its head's parameters by the delta's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

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
    model_class = getattr(transformers, architecture, None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise DeltaFormatError(f"architecture {architecture!r} is not one this transformers knows")
    restored = restore(dict(config))
    if model_class.config_class is not type(restored) or not model_class.base_model_prefix:
        raise DeltaFormatError(f"architecture {architecture!r} does not go with a {restored.model_type} config")
    try:
        with torch.device("meta"):
            model: PreTrainedModel = model_class(restored)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise DeltaFormatError(f"{architecture} cannot be built from the delta's config: {error}") from error
    prefix = model.base_model_prefix
    expected = model.base_model
    if type(expected) is not type(backbone):
        raise DeltaFormatError(
            f"{architecture} stands on a {type(expected).__name__}, the base is a {type(backbone).__name__}"
        )
    if expected is model:
        return _adopt(backbone, architecture, head)
    slots = {n: t for n, t in model.state_dict().items() if not n.startswith(f"{prefix}.")}
    setattr(model, prefix, backbone)
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    _fill(model, architecture, slots, head, ties)
    model.eval()
    model.requires_grad_(False)
    return model


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
