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
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from ken_core.errors import CheckpointError

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
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
    def backbone(self) -> PreTrainedModel:
        backbone = self.model.base_model
        assert isinstance(backbone, PreTrainedModel)
        return backbone

    @cached_property
    def backbone_tensors(self) -> dict[str, torch.Tensor]:
        """Backbone parameters in the files, by backbone-relative name, sorted; tied weights once."""
        prefix = _backbone_prefix(self.model)
        named = dict(self.backbone.named_parameters())
        return {n: named[n].data for n in sorted(named) if prefix + n not in self.absent}

    @cached_property
    def head_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers outside the backbone, by name in the whole model, sorted.

        A weight tied to the backbone belongs to the backbone.
        """
        inside = {t.data_ptr() for t in self.backbone.state_dict().values()}
        prefix = _backbone_prefix(self.model)
        state = self.model.state_dict() if prefix else {}
        return {
            n: state[n].detach()
            for n in sorted(state)
            if not n.startswith(prefix) and state[n].data_ptr() not in inside
        }

    def tokenizer_file(self, name: str) -> bytes | None:
        """The bytes of ``tokenizer.json`` or ``tokenizer_config.json``, None where the checkpoint has none."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    @property
    def pooling(self) -> str | None:
        """How sentence-transformers' own files say token vectors become one: mean, cls or last; None if silent."""
        try:
            modes = json.loads((self.folder / "1_Pooling" / "config.json").read_bytes())
        except (OSError, ValueError):
            return None
        names = {
            "mean": "pooling_mode_mean_tokens",
            "cls": "pooling_mode_cls_token",
            "last": "pooling_mode_lasttoken",
        }
        return next((pooling for pooling, key in names.items() if modes.get(key)), None)


def open_base(name_or_path: str) -> Checkpoint:
    """Open a pretrained checkpoint as its bare backbone (``AutoModel``).

    Raises:
        CheckpointError: no such folder or hub name, or no usable weights in it.
    """
    folder = find_folder(name_or_path)
    with quiet(folder):
        loaded = AutoModel.from_pretrained(folder, dtype="auto", output_loading_info=True)
    return _opened(name_or_path, folder, *loaded)


def open_tuned(name_or_path: str) -> Checkpoint:
    """Open a fine-tuned checkpoint with the head its config names in ``architectures``.

    Raises:
        CheckpointError: as `open_base`; or the class is not one of transformers' own (remote code is never run).
    """
    folder = find_folder(name_or_path)
    with quiet(folder):
        config = AutoConfig.from_pretrained(folder)
    if getattr(config, "auto_map", None):
        raise CheckpointError(f"{folder} wants its own code run (auto_map in config.json); that is never done")
    architecture = (config.architectures or [None])[0]
    if architecture is None:
        raise CheckpointError(
            f"{folder}/config.json names no architecture; expected for example BertForSequenceClassification"
        )
    model_class = getattr(transformers, architecture, None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise CheckpointError(f"{folder} is a {architecture!r}, which this transformers does not know")
    with quiet(folder):
        loaded: Any = model_class.from_pretrained(folder, dtype="auto", output_loading_info=True)
    return _opened(name_or_path, folder, *loaded)


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

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        raise CheckpointError(
            f"{name!r} is no folder here and the Hugging Face hub did not give it ({type(error).__name__}); "
            "give the path of a folder written by save_pretrained, or check the name and the network"
        ) from error


def backbone_class_name(model: PreTrainedModel) -> str:
    return type(model.base_model).__name__


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
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{folder} cannot be loaded: {reason}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(f"{folder} cannot be loaded: its safetensors file is damaged ({error})") from error
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
