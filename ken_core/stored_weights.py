"""A checkpoint's weight files: which files they are, the dtypes stored in them, and names without training wrappers.

Wrappers around a model in training (`torch.compile`, FSDP, DataParallel) leave parts of their own in tensor names, and
pruning in torch stores a weight as its values and a mask. Both are undone exactly. Other wrappers are not recognised
here, so their tensors find no place in the model (`ken_core.placement`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ken_core.errors import CheckpointError

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL = "module."
"""DataParallel, DistributedDataParallel and DeepSpeed put the whole model under this name."""
_VALUES, _MASK = "_orig", "_mask"


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers reads: the first it finds, in the order in which it looks; may be empty.

    Raises:
        CheckpointError: an index of shards is damaged, or a shard is missing.
    """
    for name in _WHOLE:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder / f"{name}.index.json")
    return []


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files elsewhere")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error!r}") from error
    if lacking := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(f"{index.parent} lacks {lacking[0]}, a shard that {index.name} names; copy all of them")
    return [index.parent / name for name in names]


def stored_dtypes(folder: Path) -> dict[str, torch.dtype | None]:
    """The floating dtype of every stored tensor by its name, None for tensors of other types; no value is read.

    Pickles are only ever read with `weights_only`, so that no code in them runs.
    """
    found: dict[str, torch.dtype | None] = {}
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found |= {n: _FLOATS.get(file.get_slice(n).get_dtype()) for n in file.keys()}  # noqa: SIM118
        else:
            tensors = torch.load(path, map_location="meta", weights_only=True)
            named = ((n, t) for n, t in tensors.items() if isinstance(t, torch.Tensor))
            found |= {n: t.dtype if t.is_floating_point() else None for n, t in named}
    return found


def is_wrapped(names: Mapping[str, object]) -> bool:
    """Whether names show that the model was saved inside a wrapper that `unwrapped` can undo."""
    return _plain_names(names) != {n: n for n in names} or bool(_masked(names))


def unwrapped(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a wrapped model, by their names without the wrapper; where possible, views of the mapped file.

    Raises:
        CheckpointError: two tensors get the same name.
    """
    stored: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                stored |= {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 - no mapping
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            stored |= {n: t for n, t in loaded.items() if isinstance(t, torch.Tensor)}
    plain: dict[str, torch.Tensor] = {}
    for name, new in _plain_names(stored).items():
        if new in plain:
            raise CheckpointError(f"{folder} holds {new!r} twice, once as {name!r}; save the model without its wrapper")
        plain[new] = stored[name]
    for weight in _masked(plain):
        values, mask = plain.pop(weight + _VALUES), plain.pop(weight + _MASK)
        plain[weight] = mask.to(values.dtype) * values  # as torch.nn.utils.prune computes it
    return plain


def _plain_names(names: Mapping[str, object]) -> dict[str, str]:
    plain = {name: _WRAPPER.sub("", name) for name in names}
    if plain and all(name.startswith(_PARALLEL) for name in plain.values()):
        plain = {name: _WRAPPER.sub("", new.removeprefix(_PARALLEL)) for name, new in plain.items()}
    return plain


def _masked(names: Mapping[str, object]) -> list[str]:
    """Names of the weights that are stored as values and a mask."""
    ends = [name.removesuffix(_VALUES) for name in names if name.endswith(_VALUES)]
    return [weight for weight in ends if weight + _MASK in names and weight not in names]
