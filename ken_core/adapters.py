"""Importing peft adapters: a LoRA or SHiRA adapter is fitted to its base and becomes a delta."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from ken_core.adapter_folder import AdapterFolder, Factors, Shifts, open_adapter
from ken_core.bits import same_bits
from ken_core.checkpoint import Checkpoint, model_class_named, open_as, quiet
from ken_core.configs import of_no_dtype
from ken_core.delta import Delta
from ken_core.entries import LowRank, expanded, overflows
from ken_core.errors import CheckpointError
from ken_core.extraction import extract
from ken_core.fingerprint import dtype_name
from ken_core.foreign import reading
from ken_core.generation_settings import settings_in, settings_of
from ken_core.progress import Progress, silent
from ken_core.selection import Budget, Selection

_CLASSES: Mapping[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "CAUSAL_LM": AutoModelForCausalLM,
    "FEATURE_EXTRACTION": AutoModel,
}


def import_peft(
    folder: str | Path,
    base: Checkpoint,
    *,
    architecture: str | None = None,
    labels: Sequence[str] | None = None,
    cast: bool = False,
    progress: Progress = silent,
) -> Delta:
    """Make a delta of an adapter that peft saved; the delta answers what peft's own merged model answers.

    A LoRA adapter's factors become low-rank entries. A SHiRA adapter's shifts become sparse entries, and so do biases
    and other backbone tensors that were trained as a whole. Tensors outside the backbone become the head.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        base: the checkpoint the adapter was trained on. An adapter does not identify its base; it can only be checked
            that the adapter fits.
        architecture: the class the adapter was trained as, where the adapter does not say.
        labels: the labels' names in the order of the logits; by default the base's names if it has as many labels, else
            LABEL_0 and so on.
        cast: allow narrowing to the base's dtype, with a loss of precision, for tensors trained as a whole.
        progress: told which tensor is being read.

    Raises:
        CheckpointError: the folder holds no LoRA or SHiRA adapter; or the adapter has settings that a delta cannot
            hold, does not fit this base, or was saved without the head it was trained with.
        ConfigMismatchError: as for `extract`.
    """
    adapter = open_adapter(Path(folder))
    model_class = _class_of(adapter, base, architecture)
    opened = open_as(base, model_class, _config(adapter, base, model_class, labels))
    if type(opened.backbone) is not type(base.backbone):
        raise CheckpointError(
            f"{adapter.path} was trained as a {model_class.__name__}, which stands on a "
            f"{type(opened.backbone).__name__}; the base is a {type(base.backbone).__name__}"
        )
    fitting = _Fitting(adapter, opened)
    with reading(str(adapter.path), CheckpointError):
        fitting.fit()
    delta = extract(base, fitting.tuned(), Selection(budget=Budget(fraction=1.0)), cast=cast, progress=progress)
    sparse = {n: replace(s, selected=fitting.positions.get(n, s.selected)) for n, s in delta.sparse.items()}
    generation = _generation(adapter, base) if delta.kind == "text-generation" else None
    return replace(delta, sparse=sparse, lowrank=fitting.lowrank, adapter=adapter.kind, generation=generation)


def _generation(adapter: AdapterFolder, base: Checkpoint) -> dict[str, Any] | None:
    """How the task generates where the adapter's folder says so, and other than its base."""
    own = settings_in(adapter.path)
    return None if own == settings_of(base) else own


class _Fitting:
    """Puts an adapter's tensors into the model it was trained on: the base's files, opened as that model's class."""

    def __init__(self, adapter: AdapterFolder, opened: Checkpoint) -> None:
        self._adapter, self._opened, self._model = adapter, opened, opened.model
        self._prefix = opened.prefix
        self._state = self._model.state_dict()
        self._ties: dict[str, str] = self._model.get_expanded_tied_weights_keys(all_submodels=True)
        self._placed: set[str] = set()
        self.lowrank: dict[str, LowRank] = {}
        """Shifts of backbone tensors; they are not put into the model."""
        self.positions: dict[str, int] = {}
        """How many elements of each backbone tensor a SHiRA adapter trained."""

    def fit(self) -> None:
        for name, tensor in self._adapter.whole.items():
            self._replace(name, tensor)
        for module, factors in self._adapter.factors.items():
            self._shift_by_factors(module, factors)
        for module, shifts in self._adapter.shifts.items():
            self._shift_elements(module, shifts)
        for follower, source in self._ties.items():
            module, _, key = follower.rpartition(".")
            self._model.get_submodule(module)._parameters[key] = self._model.get_parameter(source)
        self._refuse_if_incomplete()

    def tuned(self) -> Checkpoint:
        """The trained model without its low-rank shifts."""
        path = self._adapter.path
        opened = self._opened
        return Checkpoint(str(path), path, self._model, opened.absent - self._placed, opened.files)

    def _replace(self, name: str, tensor: torch.Tensor) -> None:
        """Put a tensor that was trained as a whole into the model."""
        ours = self._state.get(name)
        if ours is None:
            raise self._does_not_fit(f"brings {name!r}, which a {type(self._model).__name__} has no place for")
        if source := self._ties.get(name):
            if not same_bits(tensor, self._adapter.whole.get(source, self._state[source])):
                raise self._does_not_fit(f"trained {name!r} apart from {source!r}, to which this base ties it")
            return
        if tensor.shape != ours.shape and not self._is_resized(name, tensor):
            raise self._does_not_fit(f"brings {name!r} of shape {list(tensor.shape)}, the base's is {list(ours.shape)}")
        self._assign(name, tensor)
        self._placed.add(name)
        if name == self._name_of(self._model.get_input_embeddings()):
            self._model.config.vocab_size = tensor.shape[0]

    def _is_resized(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether the tensor is an embedding, or an output layer, for another number of tokens."""
        resizable = (self._model.get_input_embeddings(), self._model.get_output_embeddings())
        return name in map(self._name_of, resizable) and tensor.shape[1:] == self._state[name].shape[1:]

    def _name_of(self, layer: nn.Module | None) -> str | None:
        return next((f"{name}.weight" for name, module in self._model.named_modules() if module is layer), None)

    def _shift_by_factors(self, module: str, factors: Factors) -> None:
        name, ours = self._shifted(module)
        layer = self._model.get_submodule(module)
        if isinstance(layer, nn.Linear):
            entry = LowRank(factors.a, factors.b, factors.scale)
        elif isinstance(layer, Conv1D | nn.Embedding):  # these hold their weight as (inputs, outputs)
            entry = LowRank(factors.b.T.contiguous(), factors.a.T.contiguous(), factors.scale)
        else:
            raise self._does_not_fit(
                f"shifts {module!r}, a {type(layer).__name__}; expected a linear or embedding layer"
            )
        if entry.shape != ours.shape:
            raise self._does_not_fit(
                f"shifts {name!r} as a matrix {list(entry.shape)}, the base's is {list(ours.shape)}"
            )
        if overflows(ours, entry):
            raise self._does_not_fit(f"shifts {name!r} by more than {dtype_name(ours.dtype)} can hold")
        if name.startswith(self._prefix) and entry.rank <= min(entry.shape):
            self.lowrank[name.removeprefix(self._prefix)] = entry
        else:  # a head is stored whole, and factors larger than their matrix would save nothing
            self._assign(name, expanded(ours, entry))

    def _shift_elements(self, module: str, shifts: Shifts) -> None:
        name, ours = self._shifted(module)
        if not isinstance(self._model.get_submodule(module), nn.Linear):
            raise self._does_not_fit(f"shifts elements of {module!r}, which is no linear layer")
        rows, columns = shifts.positions
        height, width = ours.shape
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        if not bool(inside.all()):
            raise self._does_not_fit(f"shifts elements outside {name!r}, which is {list(ours.shape)}")
        flat = rows * width + columns
        if flat.unique().numel() != flat.numel():
            raise self._does_not_fit(f"shifts an element of {name!r} twice")
        wide = torch.promote_types(ours.dtype, torch.float32)
        shifted = ours.clone()
        shifted.view(-1)[flat] = (ours.reshape(-1)[flat].to(wide) + shifts.values.to(wide)).to(ours.dtype)
        self._assign(name, shifted)
        self.positions[name.removeprefix(self._prefix)] = flat.numel()

    def _shifted(self, module: str) -> tuple[str, torch.Tensor]:
        """The weight that a module's shift is added to, and its name."""
        name = f"{module}.weight"
        ours = self._state.get(name)
        if ours is None:
            raise self._does_not_fit(f"shifts {module!r}, which a {type(self._model).__name__} does not have")
        if name in self._opened.absent:
            raise self._does_not_fit(f"shifts {name!r}, which is neither in the adapter nor in the base's files")
        if name in self._ties or name in self._ties.values():
            raise self._does_not_fit(
                f"shifts {name!r}, which this base ties to another layer; merged by peft the two would both be shifted"
            )
        whole = self._adapter.whole.get(name)
        if whole is not None and not same_bits(whole, ours):
            raise self._does_not_fit(f"both replaces and shifts {name!r}")
        return name, ours

    def _assign(self, name: str, tensor: torch.Tensor) -> None:
        module_name, _, key = name.rpartition(".")
        module = self._model.get_submodule(module_name)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[key] = tensor

    def _refuse_if_incomplete(self) -> None:
        """Refuse a head with tensors that neither base nor adapter holds: they were random at training and are lost.

        A bare backbone is not checked: a pooler is all it can lack.
        """
        lacking = sorted(self._opened.absent - self._placed - self._ties.keys()) if self._prefix else []
        if lacking:
            raise CheckpointError(
                f"{self._adapter.path} was trained as a {type(self._model).__name__} but saved without {lacking[0]!r}, "
                "which the base does not have either; train again with it in modules_to_save, or name another class "
                "with --architecture"
            )

    def _does_not_fit(self, found: str) -> CheckpointError:
        trained_on = self._adapter.config.base_model_name_or_path
        return CheckpointError(
            f"{self._adapter.path} {found}; use the base it was trained on{f' ({trained_on})' if trained_on else ''} "
            "and the class it was trained as, or merge it with peft and use `ken extract`"
        )


def _class_of(adapter: AdapterFolder, base: Checkpoint, architecture: str | None) -> type[PreTrainedModel]:
    """The class an adapter was trained as."""
    model_class = model_class_named(architecture or _architecture(adapter, base), adapter.path)
    if model_class.config_class is not type(base.config):
        raise CheckpointError(
            f"{adapter.path} was trained as a {model_class.__name__}, the base is of architecture "
            f"{base.config.model_type!r}; use the base it was trained on"
        )
    return model_class


def _architecture(adapter: AdapterFolder, base: Checkpoint) -> str:
    task, mapping = adapter.config.task_type, adapter.config.auto_mapping
    if task is None and mapping is not None and mapping.base_model_class is not None:
        return mapping.base_model_class
    if task is None or task not in _CLASSES:
        raise CheckpointError(
            f"{adapter.path} has task type {task!r}; expected {', '.join(_CLASSES)}, or the class it was trained as, "
            "for example --architecture BertForMaskedLM"
        )
    found = _CLASSES[task]._model_mapping.get(type(base.config), None)
    if found is None:
        raise CheckpointError(
            f"{adapter.path} has task type {task}, for which transformers has no {base.config.model_type!r} class"
        )
    return str((found[0] if isinstance(found, tuple) else found).__name__)


def _config(
    adapter: AdapterFolder, base: Checkpoint, model_class: type[PreTrainedModel], labels: Sequence[str] | None
) -> PretrainedConfig:
    """The base's config, with as many labels as the adapter's head has."""
    config = copy.deepcopy(base.config)
    with quiet(base.folder):
        axes = _label_axes(model_class, config)
    saved = {name: axis for name, axis in axes.items() if name in adapter.whole and adapter.whole[name].ndim > axis}
    counts = {adapter.whole[name].shape[axis] for name, axis in saved.items()}
    if len(counts) > 1:
        raise CheckpointError(f"{adapter.path} holds heads of {' and '.join(map(str, sorted(counts)))} labels")
    count: int = counts.pop() if counts else base.config.num_labels or 0
    if config.num_labels != count:
        config.num_labels = count
    if labels is not None:
        if len(labels) != count or not axes or len(set(labels)) != count:
            raise CheckpointError(
                f"{len(labels)} labels were given, {len(set(labels))} of them different; the head of this "
                f"{model_class.__name__} has {count if axes else 'none'}"
            )
        config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    return config


def _label_axes(model_class: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, int]:
    """Tensor name -> the axis that counts labels, for every tensor that grows with the number of labels."""
    shapes = []
    for count in (2, 3):
        changed = copy.deepcopy(config)
        changed.num_labels = count
        with torch.device("meta"):
            shapes.append({n: t.shape for n, t in model_class(of_no_dtype(changed)).state_dict().items()})
    few, many = shapes
    grown = {n: [i for i, (a, b) in enumerate(zip(few[n], many[n], strict=True)) if a != b] for n in few}
    return {name: axes[0] for name, axes in grown.items() if axes}
