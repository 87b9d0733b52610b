"""Reading the folders that peft's `save_pretrained` writes: adapter_config.json and adapter_model.safetensors.

A folder is read without peft, and nothing in it is trusted: no code from it runs, and every number is checked before it
is used. Names are those of the trained model, without the prefix and the wrappers that peft puts around modules.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open

from ken_core.blocks import is_finite
from ken_core.checkpoint import quiet
from ken_core.errors import CheckpointError
from ken_core.foreign import reading
from ken_core.manifest import Adapter

Value = TypeVar("Value")

_KINDS: Mapping[str, Adapter] = {"LORA": "lora", "SHIRA": "shira"}
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_POSITIONS = (torch.int32, torch.int64, torch.float32)
"""float32 is among them because peft on Windows saves positions as floats."""
_FACTOR_NAMES = ({"lora_A.weight", "lora_B.weight"}, {"lora_embedding_A", "lora_embedding_B"})
_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB]|shira_weight|shira_indices)")
_WRAPPED = re.compile(r"(.+?)\.(?:original_module|modules_to_save)\.")
"""A name inside one of peft's wrappers. peft lists the biases of a module that it trains whole three times."""
_VARIANTS = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "layer_replication", "monteclora_config", "target_parameters", "trainable_token_indices", "velora_config",
)  # fmt: skip
"""Settings with which an adapter is no longer a product of two factors added to the base's weights."""
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's weights alone; others (PiSSA, OLoRA, CorDA, LoftQ, …) change them."""
_MERGE_IT = "merge it with peft (merge_and_unload), save the model and use `ken extract`"


def _compiles(pattern: str) -> str:
    try:
        re.compile(_ending(pattern))
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


def _ending(pattern: str) -> str:
    """The regular expression that peft makes of a pattern: it matches the end of a module's name."""
    return rf"(.*\.)?({pattern})$"


_Number = Annotated[float, Field(allow_inf_nan=False)]
_Rank = Annotated[int, Field(gt=0, lt=1 << 32)]
_Pattern = Annotated[str, AfterValidator(_compiles)]


class _AutoMapping(BaseModel):
    base_model_class: str | None = None


class AdapterConfig(BaseModel):
    """The keys of adapter_config.json that say what the adapter's tensors mean."""

    model_config = ConfigDict(frozen=True)

    peft_type: str
    task_type: str | None = None
    auto_mapping: _AutoMapping | None = None
    base_model_name_or_path: str | None = None
    r: _Rank = 8
    lora_alpha: _Number = 8
    use_rslora: bool = False
    rank_pattern: dict[_Pattern, _Rank] | None = None
    alpha_pattern: dict[_Pattern, _Number] | None = None

    def scale(self, module: str, rank: int) -> float:
        """The number by which the product of a module's factors is multiplied."""
        alpha = _matching(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, module: str) -> int:
        """The rank that a module's factors should have."""
        return _matching(self.rank_pattern, module, self.r)


@dataclass(frozen=True)
class Factors:
    """The LoRA factors of one module: `a` is (rank, inputs), `b` is (outputs, rank), both of one floating dtype."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Shifts:
    """SHiRA's shifts of single elements of a module's weight.

    `positions` is int64 of shape (2, n), rows and columns; `values` has shape (n,).
    """

    positions: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class AdapterFolder:
    """The content of an adapter folder. `factors` and `shifts` are keyed by module name, `whole` by tensor name."""

    path: Path
    config: AdapterConfig
    kind: Adapter
    factors: Mapping[str, Factors]
    shifts: Mapping[str, Shifts]
    whole: Mapping[str, torch.Tensor]
    """Tensors that were trained as a whole: heads and other `modules_to_save`, and biases."""


def open_adapter(path: Path) -> AdapterFolder:
    """Read a LoRA or SHiRA adapter.

    Raises:
        CheckpointError: there is no such folder, it is damaged, it holds another kind of adapter, or its tensors do not
            belong together.
    """
    with reading(str(path), CheckpointError):
        return _open(path)


def _open(path: Path) -> AdapterFolder:
    config = _read_config(path)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    whole: dict[str, torch.Tensor] = {}
    for name, tensor in _read_tensors(path).items():
        if part := _PART.fullmatch(name):
            parts.setdefault(part[1], {})[part[2]] = tensor
        else:
            whole[name.replace(".base_layer.", ".")] = tensor
    kind = _KINDS[config.peft_type]
    if not parts:
        raise CheckpointError(f"{path} holds no tensors of a {config.peft_type} adapter")
    factors = {m: _factors(path, config, m, found) for m, found in parts.items()} if kind == "lora" else {}
    shifts = {m: _shifts(path, m, found) for m, found in parts.items()} if kind == "shira" else {}
    return AdapterFolder(path, config, kind, factors, shifts, _unwrapped(whole))


def _read_config(path: Path) -> AdapterConfig:
    try:
        plain = json.loads((path / "adapter_config.json").read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} has no adapter_config.json; expected a folder that peft wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}/adapter_config.json cannot be read: {error}") from error
    try:
        config = AdapterConfig.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}/adapter_config.json: {where or 'JSON'}: {first['msg']}") from error
    if config.peft_type not in _KINDS:
        raise CheckpointError(f"{path} is a {config.peft_type!r} adapter; expected {' or '.join(_KINDS)}: {_MERGE_IT}")
    if config.peft_type == "LORA":
        _refuse_variants(path, plain)
    return config


def _refuse_variants(path: Path, plain: dict[str, Any]) -> None:
    for key in _VARIANTS:
        if plain.get(key):
            raise CheckpointError(f"{path} is a LoRA adapter with {key}, which two factors cannot hold; {_MERGE_IT}")
    if (start := plain.get("init_lora_weights")) not in _INITIALISATIONS:
        raise CheckpointError(
            f"{path} was initialised with {start!r}, which changes the base's own weights; save it again with "
            f"path_initial_model_for_weight_conversion, or {_MERGE_IT}"
        )


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of the file, by name in the trained model."""
    with quiet(path):
        if (path / "adapter_model.safetensors").is_file():
            with safe_open(path / "adapter_model.safetensors", "pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        elif (path / "adapter_model.bin").is_file():
            found = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
        else:
            raise CheckpointError(f"{path} has neither an adapter_model.safetensors nor an adapter_model.bin")
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}/adapter_model.bin holds a {type(found).__name__}; expected tensors by name")
    for name, tensor in found.items():
        _check_tensor(path, name, tensor)
    return {name.removeprefix(_PREFIX): tensor.contiguous() for name, tensor in found.items()}


def _check_tensor(path: Path, name: Any, tensor: Any) -> None:
    if not isinstance(name, str) or not name.startswith(_PREFIX):
        raise CheckpointError(f"{path} holds {name!r}; the names peft gives tensors start with {_PREFIX!r}")
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(f"{path}: {name!r} is no plain tensor; expected a dense one that is not quantised")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name!r} claims {tensor.nbytes} bytes, more than it has")
    if tensor.numel() == 0:
        raise CheckpointError(f"{path}: {name!r} is empty; was it saved without gathering its shards?")
    expected = _POSITIONS if name.endswith(".shira_indices") else _FLOATS
    if tensor.dtype not in expected:
        raise CheckpointError(f"{path}: {name!r} is {tensor.dtype}; expected one of {', '.join(map(str, expected))}")
    if not is_finite(tensor):
        raise CheckpointError(f"{path}: {name!r} holds NaN or infinity; it cannot be served")


def _factors(path: Path, config: AdapterConfig, module: str, parts: Mapping[str, torch.Tensor]) -> Factors:
    if parts.keys() not in _FACTOR_NAMES:
        raise CheckpointError(
            f"{path} holds {', '.join(sorted(parts))} of {module!r}; expected lora_A and lora_B of it"
        )
    a, b = (parts[name] for name in sorted(parts))
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.dtype != b.dtype:
        raise CheckpointError(
            f"{path}: the factors of {module!r} are {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}; "
            "expected matrices (rank, inputs) and (outputs, rank) of one dtype"
        )
    rank, expected = a.shape[0], config.rank(module)
    if rank != expected:
        raise CheckpointError(f"{path}: the factors of {module!r} have rank {rank}; its config says {expected}")
    return Factors(a, b, config.scale(module, rank))


def _shifts(path: Path, module: str, parts: Mapping[str, torch.Tensor]) -> Shifts:
    if parts.keys() != {"shira_weight", "shira_indices"}:
        raise CheckpointError(
            f"{path} holds {', '.join(sorted(parts))} of {module!r}; expected shira_weight and shira_indices of it"
        )
    values, positions = parts["shira_weight"], parts["shira_indices"]
    if values.ndim != 1 or positions.shape != (2, values.numel()):
        raise CheckpointError(
            f"{path}: {module!r} has values {list(values.shape)} at positions {list(positions.shape)}; "
            "expected (n) and (2, n)"
        )
    whole = positions.to(torch.int64)
    if not torch.equal(whole.to(positions.dtype), positions):
        raise CheckpointError(f"{path}: the positions of {module!r} are no whole numbers")
    return Shifts(whole, values)


def _unwrapped(whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the second and third names that peft gives to tensors trained as a whole."""
    wrappers = {name: found[1] for name in whole if (found := _WRAPPED.match(name))}
    plain = [name for name in whole if name not in wrappers]
    repeated = {n for n, module in wrappers.items() if any(name.startswith(f"{module}.") for name in plain)}
    return {name: tensor for name, tensor in whole.items() if name not in repeated}


def _matching(patterns: Mapping[str, Value] | None, module: str, otherwise: Value) -> Value:
    """The value of the first pattern that a module's name ends with, as peft looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(_ending(pattern), module):
            return value
    return otherwise
