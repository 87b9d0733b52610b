"""A Hugging Face checkpoint, opened read-only: its config, tensors and tokenizer files.

Weights stay on the mapped file, in the dtype they are stored in; transformers' own key mapping gives them
their names. Names inside the backbone are relative to it, so that ``AutoModel`` and ``AutoModelForX`` of one
checkpoint agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from ken_core.errors import CheckpointError
from ken_core.manifest import task_kind
from ken_core.sentence_transformer import holds_embeddings

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAFETENSORS_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Its tensors are views of the mapped file and must not be written to."""

    name: str
    folder: Path
    model: PreTrainedModel
    absent: frozenset[str]
    """Names (in the whole model) that the files do not hold: newly initialised, so part of no identity."""

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def prefix(self) -> str:
        """What the names of backbone tensors start with in the whole model."""
        return _backbone_prefix(self.model)

    @property
    def backbone(self) -> PreTrainedModel:
        backbone = self.model.base_model
        assert isinstance(backbone, PreTrainedModel)
        return backbone

    @cached_property
    def backbone_tensors(self) -> dict[str, torch.Tensor]:
        """Backbone weights in the files, by backbone-relative name, sorted; tied ones once."""
        named = weights(self.backbone)
        return {n: named[n].data for n in sorted(named) if self.prefix + n not in self.absent}

    @property
    def dtype(self) -> torch.dtype:
        """The stored dtype of the backbone's first tensor, which its others as a rule share."""
        return next(iter(self.backbone_tensors.values())).dtype

    def dtype_of(self, name: str) -> torch.dtype:
        """The stored dtype of a backbone tensor; of one the files do not hold, `dtype`."""
        return self.backbone_tensors[name].dtype if name in self.backbone_tensors else self.dtype

    @cached_property
    def head_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers outside the backbone, by name in the whole model, sorted.

        A weight tied to the backbone belongs to the backbone, one tied inside the head counts once.
        """
        seen = {t.data_ptr() for t in self.backbone.state_dict().values()}
        state = self.model.state_dict() if self.prefix else {}
        found = {}
        for name in sorted(n for n in state if not n.startswith(self.prefix)):
            if state[name].data_ptr() not in seen:
                found[name] = state[name].detach()
                seen.add(state[name].data_ptr())
        return found

    def tokenizer_file(self, name: str) -> bytes | None:
        """The bytes of a file of the tokenizer's, None where the checkpoint has none."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent floating-point buffers (answers depend on both), by name; tied ones once."""
    saved = module.state_dict().keys()
    buffers = {n: b for n, b in module.named_buffers() if n in saved and b.is_floating_point()}
    return {**dict(module.named_parameters()), **buffers}


def open_base(name_or_path: str) -> Checkpoint:
    """Open a pretrained checkpoint as its bare backbone (``AutoModel``).

    Raises:
        CheckpointError: no such folder or hub name, or no usable weights in it.
    """
    folder = find_folder(name_or_path)
    _refuse_own_code(folder)
    with quiet(folder):
        loaded = AutoModel.from_pretrained(
            folder, dtype=_stored_dtype(folder), output_loading_info=True, trust_remote_code=False
        )
    return _opened(name_or_path, folder, *loaded)


def open_tuned(name_or_path: str) -> Checkpoint:
    """Open a fine-tuned checkpoint with the head its config names in ``architectures``.

    A sentence-transformers folder of embeddings is opened without one, whatever its config names.

    Raises:
        CheckpointError: as `open_base`; or the class is not one of transformers' own (remote code is never run).
    """
    folder = find_folder(name_or_path)
    _refuse_own_code(folder)
    with quiet(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    architecture = (config.architectures or [None])[0]
    if holds_embeddings(folder) and (architecture is None or task_kind(architecture) != "feature-extraction"):
        architecture = _backbone_class(config)
    if architecture is None:
        raise CheckpointError(
            f"{folder}/config.json names no architecture; expected for example BertForSequenceClassification"
        )
    model_class = model_class_named(architecture, folder)
    with quiet(folder):
        loaded: Any = model_class.from_pretrained(folder, dtype=_stored_dtype(folder), output_loading_info=True)
    opened = _opened(name_or_path, folder, *loaded)
    if lacking := sorted(opened.absent - set(_backbone_names(opened.model))):
        raise CheckpointError(f"{folder} lacks {lacking[0]!r}, which a {architecture} has; is it fine-tuned at all?")
    return opened


def _backbone_class(config: PretrainedConfig) -> str | None:
    """The class that SentenceTransformer opens such a model as, whatever it was trained as before that."""
    found: Any = AutoModel._model_mapping.get(type(config), None)
    return None if found is None else str((found[0] if isinstance(found, tuple) else found).__name__)


def open_as(base: Checkpoint, model_class: type[PreTrainedModel], config: PretrainedConfig) -> Checkpoint:
    """A base's files opened once more as a whole model; what they do not hold, or not in its shape, is `absent`."""
    with quiet(base.folder):
        loaded: Any = model_class.from_pretrained(
            base.folder,
            config=config,
            dtype=_stored_dtype(base.folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, info = loaded
    other_shape = {name for name, *_ in info["mismatched_keys"]}
    missing = {*info["missing_keys"], *other_shape}
    return _opened(base.name, base.folder, model, {**info, "missing_keys": missing, "mismatched_keys": set()})


def model_class_named(architecture: str, folder: Path) -> type[PreTrainedModel]:
    """The class a folder says it is of, one of transformers' own.

    Raises:
        CheckpointError: there is none of that name.
    """
    found = getattr(transformers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise CheckpointError(f"{folder} is a {architecture!r}, which this transformers does not know")
    return found


def wrap(model: PreTrainedModel, folder: str | Path | None = None) -> Checkpoint:
    """A model that is in memory already, as a checkpoint: what it was just trained to, say.

    Its tensors are the model's own and must not be changed while the checkpoint is used.

    Args:
        model: on the CPU, of one of transformers' own classes.
        folder: where its tokenizer lies; default the folder it was loaded from.

    Raises:
        CheckpointError: the model lies elsewhere, or there is no such folder.
    """
    if any(p.device.type != "cpu" for p in model.parameters()):
        raise CheckpointError("the model is not on the CPU; move it there with .cpu() first")
    if getattr(transformers, type(model).__name__, None) is not type(model):
        raise CheckpointError(f"{type(model).__name__} is no class of transformers itself, so it could not be served")
    name = str(folder or model.name_or_path)
    return Checkpoint(name, find_folder(name), model, frozenset())


def find_folder(name_or_path: str) -> Path:
    """The local folder of a checkpoint; a hub name is downloaded to (or found in) the Hugging Face cache.

    Raises:
        CheckpointError: neither a folder with a config.json nor a hub name that can be had.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} has no config.json; expected a folder written by save_pretrained")
        return path.resolve()
    if path.exists():
        raise CheckpointError(f"{path} is a file; expected a folder written by save_pretrained")
    if not _HUB_NAME.fullmatch(name_or_path) or name_or_path.startswith("."):
        raise CheckpointError(f"{path}: no such folder")
    return _from_hub(name_or_path)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*_Dense/pytorch_model.bin"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*wanted, "pytorch_model*.bin"]))
        return folder
    except Exception as error:
        raise CheckpointError(
            f"{name!r} is no folder here and the Hugging Face hub did not give it ({type(error).__name__}); "
            "give the path of a folder written by save_pretrained, or check the name and the network"
        ) from error


def _refuse_own_code(folder: Path) -> None:
    """Checkpoints may ask for Python of their own to be run; that is never done."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}/config.json is no object; expected what save_pretrained writes")
    if config.get("auto_map"):
        raise CheckpointError(f"{folder} wants its own code run (auto_map in config.json); that is never done")


def _stored_dtype(folder: Path) -> torch.dtype | str:
    """The floating dtype of the files themselves, whatever their config says; the widest where they mix."""
    names: set[str] = set()
    with quiet(folder):
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                names |= {file.get_slice(n).get_dtype() for n in file.keys()}  # noqa: SIM118 - no mapping
    found = {_SAFETENSORS_FLOATS[n] for n in names if n in _SAFETENSORS_FLOATS} or _pickled_dtypes(folder)
    return max(found, key=lambda d: (torch.finfo(d).bits, torch.finfo(d).max)) if found else "auto"


def _pickled_dtypes(folder: Path) -> set[torch.dtype]:
    """On the meta device nothing but the tensors' descriptions is read; `weights_only` runs no code of the file."""
    found: set[torch.dtype] = set()
    with quiet(folder):
        for path in sorted(folder.glob("pytorch_model*.bin")):
            tensors = torch.load(path, map_location="meta", weights_only=True)
            found |= {t.dtype for t in tensors.values() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    return found


def _backbone_names(model: PreTrainedModel) -> list[str]:
    return [_backbone_prefix(model) + name for name in weights(model.base_model)]


def _backbone_prefix(model: PreTrainedModel) -> str:
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def _opened(name: str, folder: Path, model: PreTrainedModel, info: dict[str, Any]) -> Checkpoint:
    if info["mismatched_keys"]:
        raise CheckpointError(
            f"{folder}: tensors do not have the shapes its config asks for: {info['mismatched_keys']}"
        )
    prefix = _backbone_prefix(model)
    absent = frozenset(info["missing_keys"])
    names = [n for n, _ in model.base_model.named_parameters()]
    if names and all(prefix + n in absent for n in names):
        raise CheckpointError(f"{folder} holds none of the weights a {type(model).__name__} has")
    model.eval()
    model.requires_grad_(False)
    return Checkpoint(name, folder, model, absent)


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Silence transformers' bars and notes, and turn its loading errors into ours."""
    logging = transformers.utils.logging
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{folder} cannot be loaded: {reason}") from error
    except (UnpicklingError, EOFError) as error:
        raise CheckpointError(
            f"{folder} cannot be loaded: a pickle in it is damaged or holds more than tensors, which is never loaded; "
            "save it as safetensors where you trust it"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(f"{folder} cannot be loaded: its safetensors file is damaged ({error})") from error
    except StrictDataclassError as error:
        raise CheckpointError(f"{folder}/config.json cannot be used: {str(error).splitlines()[-1].strip()}") from error
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
