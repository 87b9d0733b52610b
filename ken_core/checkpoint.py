"""Opening Hugging Face checkpoints, bases and fine-tunes, read-only: their config, tensors and tokenizer files.

Weights stay on the mapped file, in the dtype they are stored in; transformers' own key mapping gives them
their names. Names inside the backbone are relative to it, so that ``AutoModel`` and ``AutoModelForX`` of one
checkpoint agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from ken_core import mapped_pages
from ken_core.errors import CheckpointChangedError, CheckpointError
from ken_core.fingerprint import Fingerprint, fingerprint, identify
from ken_core.labels import check_labels
from ken_core.manifest import task_kind
from ken_core.mapped import MappedFiles
from ken_core.placement import advice, check_places, inside
from ken_core.sentence_transformer import holds_embeddings
from ken_core.stored_weights import is_wrapped, stored_dtypes, unwrapped, weight_files

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_KEPT_IN_LFS = (".safetensors", ".bin", ".json", ".model", ".txt")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_POOLER = "pooler."
"""Name of a layer that bare backbones have on top of their token vectors; files saved from other classes lack it."""
_REPORT = re.compile(r"\s*For details look at .*")
"""The end of an error of transformers that points to its log, which is silent here."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Its tensors are views of the mapped file and must not be written to."""

    name: str
    folder: Path
    model: PreTrainedModel
    absent: frozenset[str]
    """Names (in the whole model) that the files do not hold: newly initialised, so not part of `identity`."""
    files: MappedFiles = field(default_factory=MappedFiles, compare=False)
    """The files that the tensors are views of."""
    left_out: tuple[str, ...] = ()
    """Names in the files that would lie in the backbone but have no place there; transformers leaves them out."""

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def prefix(self) -> str:
        """The prefix that names of backbone tensors have in the whole model; empty for a bare backbone."""
        return _backbone_prefix(self.model)

    @property
    def backbone(self) -> PreTrainedModel:
        backbone = self.model.base_model
        assert isinstance(backbone, PreTrainedModel)
        return backbone

    @cached_property
    def backbone_tensors(self) -> dict[str, torch.Tensor]:
        """Backbone weights in the files, by backbone-relative name, sorted; tied weights appear once."""
        named = weights(self.backbone)
        return {n: named[n].data for n in sorted(named) if self.prefix + n not in self.absent}

    @cached_property
    def identity(self) -> Fingerprint:
        """The fingerprint of the backbone as it was opened.

        Raises:
            CheckpointChangedError: the files were written to in the meantime.
        """
        with self.unchanged():
            return fingerprint(self.backbone_tensors)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Enclose code that reads the tensors, so that it never works with values that are not the checkpoint's.

        Raises:
            CheckpointChangedError: the files do not hold what they held when the checkpoint was opened, or were
                written to before the block's end.
        """
        self.files.check(self._others if "identity" in vars(self) else None)
        before = self.files.states()
        try:
            yield
        finally:
            self.files.when_read()
            if self.files.states() != before:  # any other error may be a consequence of that
                raise CheckpointChangedError(f"{self.folder} was written to while it was read; try again afterwards")

    def let_go(self) -> None:
        """Give back the memory that reading the backbone's tensors has taken. They can be read on."""
        mapped_pages.let_go(self.backbone_tensors.values())

    def differing(self, names: Iterable[str] | None = None) -> list[str]:
        """Hash backbone tensors (by default all) again, and return the names of those that differ from `identity`.

        If any differ, `unchanged` raises from then on, until the files are written to again.
        """
        found = self._others(names)
        if found:
            self.files.refuse(found)
        return found

    def _others(self, names: Iterable[str] | None = None) -> list[str]:
        wanted = list(self.backbone_tensors if names is None else names)
        known = self.identity.tensors
        return wanted if self.files.cut else [n for n in wanted if identify(self.backbone_tensors[n]) != known[n]]

    @cached_property
    def lacking(self) -> list[str]:
        """Backbone weights that the files do not hold although answers need them; never a bare backbone's pooler."""
        names = sorted(n for n in weights(self.backbone) if self.prefix + n in self.absent)
        return [n for n in names if self.prefix or not n.startswith(_POOLER)]

    @property
    def dtype(self) -> torch.dtype:
        """The stored dtype of the backbone's first tensor, which the other tensors share as a rule."""
        return next(iter(self.backbone_tensors.values())).dtype

    def dtype_of(self, name: str) -> torch.dtype:
        """The stored dtype of a backbone tensor; `dtype` for a tensor that the files do not hold."""
        return self.backbone_tensors[name].dtype if name in self.backbone_tensors else self.dtype

    @cached_property
    def head_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers outside the backbone, by name in the whole model, sorted.

        A weight tied to the backbone belongs to the backbone; weights tied to each other in the head appear once.
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
        """The bytes of one of the tokenizer's files, None where the checkpoint does not have it."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent floating-point buffers (answers depend on both), by name; tied ones appear once."""
    saved = module.state_dict().keys()
    buffers = {n: b for n, b in module.named_buffers() if n in saved and b.is_floating_point()}
    return {**dict(module.named_parameters()), **buffers}


def open_base(name_or_path: str) -> Checkpoint:
    """Open a pretrained checkpoint as its bare backbone (``AutoModel``).

    Raises:
        CheckpointError: there is no such folder or hub name, it holds no usable weights, or some of its weights have
            names that the model does not know.
    """
    folder = find_folder(name_or_path)
    _read_config(folder)
    model, info, files = _load(folder, AutoModel)
    opened = _opened(name_or_path, folder, model, info, files)
    check_places(folder, model, opened.lacking, info["unexpected_keys"])
    if opened.lacking:
        raise CheckpointError(
            f"{folder} lacks {opened.lacking[0]!r}, which a {type(model).__name__} has; a base holds all its weights"
        )
    return opened


def open_tuned(name_or_path: str) -> Checkpoint:
    """Open a fine-tuned checkpoint with the head its config names in ``architectures``.

    A sentence-transformers folder of embeddings is opened without a head, whatever its config names.

    Raises:
        CheckpointError: as for `open_base`, but weights that were frozen may be missing; or the class is not one of
            transformers' own (remote code is never run), or the config's labels are unusable.
    """
    folder = find_folder(name_or_path)
    check_labels(_read_config(folder), f"{folder}/config.json")
    with quiet(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    architecture = (config.architectures or [None])[0]
    if holds_embeddings(folder) and (architecture is None or task_kind(architecture) != "feature-extraction"):
        backbone = _backbone_class(config)
        architecture = None if backbone is None else backbone.__name__
    if architecture is None:
        raise CheckpointError(
            f"{folder}/config.json names no architecture; expected for example BertForSequenceClassification"
        )
    model_class = model_class_named(architecture, folder)
    if model_class.config_class is not type(config):
        raise CheckpointError(
            f"{folder}/config.json is of architecture {config.model_type!r}, but the class it names, {architecture}, "
            "is not"
        )
    model, info, files = _load(folder, model_class)
    opened = _opened(name_or_path, folder, model, info, files)
    of_head = sorted(opened.absent - set(_backbone_names(model)))
    lacking = [*of_head, *(opened.prefix + n for n in opened.lacking)]
    check_places(folder, model, lacking, info["unexpected_keys"])
    if of_head:
        raise CheckpointError(f"{folder} lacks {of_head[0]!r}, which a {architecture} has; is it fine-tuned at all?")
    return opened


def _backbone_class(config: PretrainedConfig) -> Any:
    """The backbone's class, as which SentenceTransformer opens a model, whatever class the model was trained as."""
    found: Any = AutoModel._model_mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def open_as(base: Checkpoint, model_class: type[PreTrainedModel], config: PretrainedConfig) -> Checkpoint:
    """Open a base's files once more, as a whole model.

    Tensors that the files do not hold, or hold in another shape, are `absent`.

    Raises:
        CheckpointError: the files cannot be opened as that model, or are not the ones the base was opened from.
    """
    model, info, files = _load(base.folder, model_class, config)
    other_shape = {name for name, *_ in info["mismatched_keys"]}
    missing = {*info["missing_keys"], *other_shape}
    if base.files.states() not in ((), files.states()):
        raise CheckpointChangedError(f"{base.folder} was replaced after the base was opened; open it again")
    return _opened(base.name, base.folder, model, {**info, "missing_keys": missing, "mismatched_keys": set()}, files)


def model_class_named(architecture: str, folder: Path) -> type[PreTrainedModel]:
    """The class of transformers that a folder's config names.

    Raises:
        CheckpointError: transformers has no class of that name.
    """
    found = getattr(transformers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise CheckpointError(f"{folder} is a {architecture!r}, which this transformers does not know")
    return found


def wrap(model: PreTrainedModel, folder: str | Path | None = None) -> Checkpoint:
    """A model that is in memory already, for example after training, as a checkpoint.

    Its tensors are the model's own and must not be changed while the checkpoint is used.

    Args:
        model: on the CPU, of one of transformers' own classes.
        folder: the folder of its tokenizer; by default the folder the model was loaded from.

    Raises:
        CheckpointError: the model is not on the CPU or not of such a class, or there is no such folder.
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
        CheckpointError: this is neither a folder with a config.json nor a hub name that can be downloaded.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} has no config.json; {_what_else(path)}")
        return path.resolve()
    if path.exists():
        raise CheckpointError(f"{path} is a file; expected a folder written by save_pretrained")
    if not _HUB_NAME.fullmatch(name_or_path) or name_or_path.startswith("."):
        raise CheckpointError(f"{path}: no such folder")
    return _from_hub(name_or_path)


def _what_else(folder: Path) -> str:
    """What to do with a folder that is no checkpoint itself."""
    steps = [p for p in folder.glob("checkpoint-*") if (p / "config.json").is_file()]
    if steps:
        latest = max(steps, key=lambda p: p.stat().st_mtime)
        return f"a Trainer wrote its checkpoints into folders of their own: give one of them, the latest is {latest}"
    return "expected a folder written by save_pretrained"


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*_Dense/pytorch_model.bin"]
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


def _refuse_pointers(folder: Path) -> None:
    """Raise a `CheckpointError` if a clone without Git LFS left a note in place of a file."""
    for file in sorted(folder.iterdir()):
        if file.suffix in _KEPT_IN_LFS and file.is_file() and _is_pointer(file):
            raise CheckpointError(
                f"{file} is a pointer of Git LFS and not the file itself; fetch the files with `git lfs pull`"
            )


def _is_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:  # whoever needs a file that cannot be read says so
        return False


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json, which may not change where the weights come from or what they are.

    Raises:
        CheckpointError: it is no JSON object; it asks for Python code of its own, which is never run; or its weights
            are quantised, lie in other files, or would be changed by an adapter.
    """
    _refuse_pointers(folder)
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}/config.json is no JSON object; expected the one that save_pretrained writes")
    if config.get("auto_map"):
        raise CheckpointError(f"{folder} wants its own code run (auto_map in config.json); that is never done")
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{folder} is quantised (quantization_config in config.json); a delta needs the weights themselves: "
            "dequantise the model and save it again"
        )
    if config.get("transformers_weights"):
        raise CheckpointError(
            f"{folder}/config.json names other weights, {config['transformers_weights']!r} (transformers_weights); "
            "save the model with save_pretrained, as model.safetensors"
        )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} holds an adapter of peft (adapter_config.json), which transformers would load over the model; "
            "use `ken import-peft` with the adapter in a folder of its own; if it is merged already, remove that file"
        )
    return config


def _load(
    folder: Path, model_class: Any, config: PretrainedConfig | None = None
) -> tuple[PreTrainedModel, Any, MappedFiles]:
    """Load a model in its files' own dtype.

    Returns:
        The model, transformers' report on missing, unexpected and mismatched tensors, and the files.
    """
    with quiet(folder):
        files = MappedFiles(weight_files(folder))
        stored = stored_dtypes(folder)
        options = {"dtype": _widest(stored), "output_loading_info": True, "ignore_mismatched_sizes": True}
        if not is_wrapped(stored):
            given = {} if config is None else {"config": config}
            loaded: Any = model_class.from_pretrained(folder, trust_remote_code=False, **given, **options)
            model, info = loaded
        else:
            config = config or AutoConfig.from_pretrained(folder, trust_remote_code=False)
            plain_class = _backbone_class(config) if model_class is AutoModel else model_class
            model, info = plain_class.from_pretrained(None, config=config, state_dict=unwrapped(folder), **options)
    _refuse_doubles(folder, model, stored)
    return model, info, files


def _widest(stored: Mapping[str, torch.dtype | None]) -> torch.dtype | str:
    """The floating dtype of the stored tensors, whatever the config says; the widest one where there are several."""
    found = {dtype for dtype in stored.values() if dtype is not None}
    return max(found, key=lambda d: (torch.finfo(d).bits, torch.finfo(d).max)) if found else "auto"


def _refuse_doubles(folder: Path, model: PreTrainedModel, stored: Mapping[str, object]) -> None:
    """Refuse a weight that is stored both with and without the backbone's prefix: transformers silently takes one."""
    prefix = f"{model.base_model_prefix}."
    for name in weights(model.base_model):
        if name in stored and prefix + name in stored:
            raise CheckpointError(
                f"{folder} holds {name!r} and {prefix + name!r}, which are one weight; remove the one that is wrong"
            )


def _backbone_names(model: PreTrainedModel) -> list[str]:
    return [_backbone_prefix(model) + name for name in weights(model.base_model)]


def _backbone_prefix(model: PreTrainedModel) -> str:
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def _opened(name: str, folder: Path, model: PreTrainedModel, info: dict[str, Any], files: MappedFiles) -> Checkpoint:
    files.check_since_opened()
    if info["mismatched_keys"]:
        raise CheckpointError(_other_shapes(folder, model, info["mismatched_keys"]))
    prefix = _backbone_prefix(model)
    absent = frozenset(info["missing_keys"])
    names = [n for n, _ in model.base_model.named_parameters()]
    if names and all(prefix + n in absent for n in names):
        strays = sorted(info["unexpected_keys"])
        held = f"; it holds {strays[0]!r} for example. {advice(strays[0])}" if strays else ""
        raise CheckpointError(f"{folder} holds none of the weights a {type(model).__name__} has{held}")
    model.eval()
    model.requires_grad_(False)
    return Checkpoint(name, folder, model, absent, files, tuple(inside(model, info["unexpected_keys"])))


def _other_shapes(folder: Path, model: PreTrainedModel, found: Collection[tuple[str, Any, Any]]) -> str:
    shapes = {name: (list(theirs), list(ours)) for name, theirs, ours in found}
    listed = [f"{n!r} is {theirs}, expected {ours}" for n, (theirs, ours) in sorted(shapes.items())]
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    heads = [n for n in sorted(shapes) if n not in set(_backbone_names(model))]
    count = getattr(model.config, "num_labels", None)
    hint = f"; id2label in config.json names {count} labels: does it fit the head?" if heads and count else ""
    return f"{folder}: tensors do not have the shapes its config.json asks for: {'; '.join(listed[:3])}{more}{hint}"


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Silence transformers' progress bars and log, and turn its loading errors into `CheckpointError`."""
    logging = transformers.utils.logging
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = _REPORT.sub("", str(error).strip().partition("\n")[0]) or type(error).__name__
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
