"""Checking that every stored tensor found its place in the model, and every weight of the model its tensor.

Transformers leaves out tensors that it has no place for, initialises weights that it does not find, and merely logs
both. Where both happen, the files hold the weights under names that transformers does not know, and the model it loads
is not the one that was saved.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from ken_core.errors import CheckpointError

_ADVICE = (
    (r"lora_|shira_|base_layer|modules_to_save|original_module|base_model\.model\.",
     "An adapter is in it that was not merged: merge it with peft (merge_and_unload), save the model and try again, "
     "or save the adapter alone and use `ken import-peft`"),
    (r"(^|\.)_?flat_param", "Its shards were not gathered: save a full state dict"),
    (r"\.(SCB|absmax|quant_map|nested_\w+|quant_state\.\S+|qweight|qzeros|scales|g_idx|weight_scale\w*|weight_format)$",
     "Its weights are quantised: dequantise the model and save it again"),
    (r"parametrizations\.|_(orig|mask|g|v|u)$",
     "Its weights are stored in parts: make the parametrization, pruning or weight norm permanent (torch's "
     "remove_parametrizations, prune.remove, remove_weight_norm) and save it again"),
)  # fmt: skip
_OTHERWISE = "Save it with save_pretrained from a plain model of the class that its config names"


def check_places(folder: Path, model: PreTrainedModel, lacking: Collection[str], left_out: Collection[str]) -> None:
    """Refuse a model whose weights are in its files under names that transformers does not know.

    Args:
        lacking: names (in the whole model) of weights that no file holds.
        left_out: names in the files that the model has no place for.

    Raises:
        CheckpointError: there are names of both kinds, and the message gives one of each; or a tensor that was left out
            changes a weight.
    """
    if altered := [name for name in sorted(left_out) if _of_a_weight(name, model)]:
        raise CheckpointError(
            f"{folder} holds {altered[0]!r}, which changes the weight of its layer; a {type(model).__name__} leaves it "
            f"out, so its answers would be others. {advice(altered[0])}"
        )
    if lacking and left_out:
        missed, stray = _closest(lacking, left_out)
        raise CheckpointError(
            f"{folder} lacks {missed!r} and holds {stray!r}, which a {type(model).__name__} has no place for. "
            f"{advice(stray)}"
        )


def advice(stray: str) -> str:
    """What to do about a tensor of this name."""
    return next((text for pattern, text in _ADVICE if re.search(pattern, stray)), _OTHERWISE)


def inside(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """The names that would lie inside the model's backbone, sorted; the others belong to heads of other classes."""
    prefix, children = f"{model.base_model_prefix}.", {name for name, _ in model.base_model.named_children()}
    return sorted(name for name in names if name.removeprefix(prefix).partition(".")[0] in children)


def _of_a_weight(name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor belongs to a layer that has weights and no sub-layers: it can only change those weights."""
    modules = dict(model.named_modules())
    prefix = f"{model.base_model_prefix}."
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        parts = candidate.split(".")
        for end in range(len(parts) - 1, 0, -1):
            found = modules.get(".".join(parts[:end]))
            if found is not None:
                if _is_leaf_with_weights(found):
                    return True
                break
    return False


def _is_leaf_with_weights(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) and any(p is not None for p in module._parameters.values())


def _closest(lacking: Collection[str], left_out: Collection[str]) -> tuple[str, str]:
    """The first lacking name, and the left-out name that shares the most parts with it."""
    missed = min(lacking)
    parts = set(missed.split("."))
    return missed, max(sorted(left_out), key=lambda name: len(parts & set(name.split("."))))
