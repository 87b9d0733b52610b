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
    with torch.device("meta"):
        model: PreTrainedModel = model_class(restore(dict(config)))
    prefix = model.base_model_prefix
    expected = model.base_model
    if type(expected) is not type(backbone):
        raise DeltaFormatError(
            f"{architecture} stands on a {type(expected).__name__}, the base is a {type(backbone).__name__}"
        )
    if expected is model:
        return _adopt(backbone, architecture, head)
    setattr(model, prefix, backbone)
    _fill(model, architecture, prefix, head)
    model.tie_weights()
    model.eval()
    model.requires_grad_(False)
    return model


def _adopt(backbone: nn.Module, architecture: str, head: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    if head:
        raise DeltaFormatError(f"{architecture} has no head, but the delta brings {sorted(head)[0]!r}")
    assert isinstance(backbone, PreTrainedModel)
    return backbone


def _fill(model: PreTrainedModel, architecture: str, prefix: str, head: Mapping[str, torch.Tensor]) -> None:
    inside = {id(p) for p in model.base_model.parameters()}
    wanted = {n: p for n, p in model.named_parameters() if id(p) not in inside and not n.startswith(f"{prefix}.")}
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = sorted(n for n in wanted if n not in head and n not in tied)
    if missing:
        raise DeltaFormatError(f"the delta brings no {missing[0]!r}, which the head of {architecture} needs")
    for name, tensor in head.items():
        module_name, _, key = name.rpartition(".")
        module = model.get_submodule(module_name) if _has(model, module_name) else None
        slot = getattr(module, key, None) if module is not None else None
        if not isinstance(slot, torch.Tensor):
            raise DeltaFormatError(f"the head of {architecture} has no {name!r}")
        if slot.shape != tensor.shape:
            raise DeltaFormatError(f"{name!r} has shape {list(tensor.shape)}, its config asks for {list(slot.shape)}")
        assert module is not None
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[key] = tensor


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True
