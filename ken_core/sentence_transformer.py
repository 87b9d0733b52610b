"""Folders of sentence-transformers: the files beside the weights are read strictly, and written back.

``modules.json`` lists the modules that SentenceTransformer runs in order. This package serves a Transformer, then a
Pooling, then Dense and Normalize in any order; any other module or setting that would change the embeddings is refused
by name. Every file is read in both its forms: the old one, and that of version 6.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ken_core.embedding import ACTIVATIONS, POOLINGS, Dense, Embedding, Pooling
from ken_core.errors import CheckpointError

T = TypeVar("T")

MODULES = "modules.json"
_ABOUT = "config_sentence_transformers.json"
_TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_PACKAGE = "sentence_transformers."
_OLD_POOLING: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
"""Keys of the old form -> modes, in the order in which SentenceTransformer concatenates several modes."""
_NEW_POOLING: Mapping[str, Pooling] = {"lasttoken": "last", **{mode: mode for mode in POOLINGS if mode != "last"}}
_POOLING_KEYS = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"}
_DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function", "use_residual"} | {
    "module_input_name", "module_output_name"
}  # fmt: skip
_TEXT_ALONE = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_AT_DEFAULT: Mapping[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "modality_config": (_TEXT_ALONE,),
    "module_output_name": ("token_embeddings",),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
    **dict.fromkeys(("processing_kwargs", "model_args", "model_kwargs", "tokenizer_args"), (None, {})),
    **dict.fromkeys(("processor_kwargs", "config_args", "config_kwargs"), (None, {})),
    "tokenizer_name_or_path": (None,),
}
"""Keys of the Transformer's file, and the only values with which they are served."""
_WITHOUT_EFFECT = {"unpad_inputs"}
_SAVED_WITHOUT_PROMPTS = {"query": "", "document": ""}
"""The prompts that SentenceTransformer knows for every folder."""


@dataclass(frozen=True)
class Described:
    """A folder's description of its embeddings, and the weights that belong to it.

    Attributes:
        projections: the weights of the Dense modules, by the names in `Embedding.shapes`.
    """

    embedding: Embedding
    projections: Mapping[str, torch.Tensor] = field(default_factory=dict)


def read(folder: Path, width: int | None) -> Described | None:
    """Read a folder's description of its embeddings; None where the folder is not one of sentence-transformers.

    Args:
        width: the width of the model's token vectors, None where its config does not tell.

    Raises:
        CheckpointError: the files are damaged, or ask for something that is not served.
    """
    if not (folder / MODULES).is_file():
        if (folder / "1_Pooling" / "config.json").is_file():
            raise CheckpointError(
                f"{folder} has a 1_Pooling but no {MODULES}, which SentenceTransformer would overlook to pool by mean; "
                "save the whole model with SentenceTransformer.save, or remove that folder"
            )
        return None
    if width is None:
        raise CheckpointError(f"{folder}/config.json does not tell how wide token vectors are (hidden_size)")
    return _Reading(folder, width).described()


def holds_embeddings(folder: Path) -> bool:
    """Whether SentenceTransformer would open the folder as embeddings of a bare backbone (``AutoModel``)."""
    try:
        modules = json.loads((folder / MODULES).read_bytes())
        return [_class_of(module["type"]) for module in modules[:2]] == ["Transformer", "Pooling"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def write(described: Described, folder: Path, width: int) -> None:
    """Write the files of a description, so that SentenceTransformer computes the same embeddings from the folder.

    Args:
        folder: the folder of the model and its tokenizer.
        width: the width of the model's token vectors.
    """
    embedding = described.embedding
    modules = [_module(0, "Transformer", ""), _module(1, "Pooling", "1_Pooling")]
    _write(folder / _TRANSFORMER_FILES[0], max_seq_length=embedding.max_length, do_lower_case=embedding.lowercase)
    _write(
        folder / "1_Pooling" / "config.json", **_pooling_file(embedding, width), include_prompt=embedding.include_prompt
    )
    for i, module in enumerate(embedding.modules):
        kind = "Normalize" if module == "normalize" else "Dense"
        place = f"{i + 2}_{kind}"
        modules.append(_module(i + 2, kind, place))
        if isinstance(module, Dense):
            _write_dense(folder / place, module, i, described.projections)
    (folder / MODULES).write_text(json.dumps(modules, indent=2))
    _write(
        folder / _ABOUT,
        model_type="SentenceTransformer",
        prompts=dict(embedding.prompts),
        default_prompt_name=embedding.default_prompt,
        similarity_fn_name=embedding.similarity,
        **({"truncate_dim": embedding.dimensions} if embedding.dimensions else {}),
    )


class _Reading:
    """Reads one folder, file by file."""

    def __init__(self, folder: Path, width: int) -> None:
        self._folder = folder
        self._width = width
        self._projections: dict[str, torch.Tensor] = {}
        self._told: dict[str, Any] = {}

    def described(self) -> Described:
        about = self._json(_ABOUT) if (self._folder / _ABOUT).is_file() else {}
        model_type = about.get("model_type", "SentenceTransformer")
        if model_type != "SentenceTransformer":
            raise self._refused(_ABOUT, f"describes a {model_type!r}; expected a SentenceTransformer")
        (first, place), *rest = self._modules()
        if first != "Transformer" or place != "" or not rest or rest[0][0] != "Pooling":
            found = [kind for kind, _ in ((first, place), *rest)]
            raise self._refused(MODULES, f"lists {found}; expected a Transformer in the folder itself, then a Pooling")
        self._read_transformer()
        self._read_pooling(rest[0][1])
        steps = [(kind, where) for kind, where in rest[1:] if kind != "Dropout"]  # it does nothing outside training
        self._told["modules"] = [self._step(i, kind, where) for i, (kind, where) in enumerate(steps)]
        self._read_about(about)
        embedding = self._checked("", lambda: Embedding.model_validate(self._told))
        pooled = self._width * len(embedding.pooling)
        if embedding.takes not in (None, pooled):
            raise self._refused(MODULES, f"has a Dense that takes {embedding.takes} numbers; pooling gives {pooled}")
        return Described(embedding, self._projections)

    def _modules(self) -> list[tuple[str, str]]:
        """Class and place of every module."""
        plain = self._parsed(MODULES)
        if not isinstance(plain, list) or not plain or not all(isinstance(module, dict) for module in plain):
            raise self._refused(MODULES, "is no list of modules")
        found = []
        for module in plain:
            kind, place = _class_of(module.get("type")), module.get("path")
            if kind is None:
                raise self._refused(
                    MODULES, f"lists a {module.get('type')!r}, whose own code would have to run; that is never done"
                )
            if not isinstance(place, str) or ".." in PurePosixPath(place).parts or place.startswith("/"):
                raise self._refused(MODULES, f"has the module path {place!r}; expected a folder inside this one")
            found.append((kind, place))
        return found

    def _read_transformer(self) -> None:
        name = next((name for name in _TRANSFORMER_FILES if (self._folder / name).is_file() and self._json(name)), None)
        plain = self._json(name) if name else {}
        for key, value in plain.items():
            if key in _AT_DEFAULT and value not in _AT_DEFAULT[key]:
                raise self._refused(str(name), f"sets {key} to {value!r}; served is {_AT_DEFAULT[key][0]!r}")
            if key not in {*_AT_DEFAULT, *_WITHOUT_EFFECT, "max_seq_length", "do_lower_case"}:
                raise self._refused(str(name), f"has the key {key!r}, which is not known here")
        self._told |= {"max_length": plain.get("max_seq_length"), "lowercase": plain.get("do_lower_case") or False}

    def _read_pooling(self, place: str) -> None:
        name = f"{place}/config.json"
        plain = self._json(name)
        if strange := sorted(plain.keys() - _POOLING_KEYS - _OLD_POOLING.keys()):
            raise self._refused(name, f"has the key {strange[0]!r}, which is not known here")
        if "pooling_mode" in plain:
            modes = plain["pooling_mode"]
            listed = modes if isinstance(modes, list) else [modes]
            if unknown := [mode for mode in listed if not isinstance(mode, str) or mode not in _NEW_POOLING]:
                raise self._refused(name, f"pools by {unknown[0]!r}; served are {', '.join(_NEW_POOLING)}")
            names = [_NEW_POOLING[mode] for mode in listed]
        else:
            names = [mode for key, mode in _OLD_POOLING.items() if plain.get(key)] or ["mean"]
        self._told |= {"pooling": names, "include_prompt": plain.get("include_prompt", True)}

    def _step(self, i: int, kind: str, place: str) -> Any:
        name = f"{place}/config.json"
        plain = self._json(name) if kind == "Dense" or (self._folder / name).is_file() else {}
        for key in ("module_input_name", "module_output_name"):
            if plain.get(key) not in (None, "sentence_embedding"):
                raise self._refused(name, f"sets {key} to {plain[key]!r}; served is 'sentence_embedding'")
        match kind:
            case "Normalize":
                return "normalize"
            case "Dense":
                return self._dense(i, place, plain)
        raise self._refused(MODULES, f"lists a {kind}; served after the Pooling are Dense and Normalize")

    def _dense(self, i: int, place: str, plain: dict[str, Any]) -> Dense:
        name = f"{place}/config.json"
        if strange := sorted(plain.keys() - _DENSE_KEYS):
            raise self._refused(name, f"has the key {strange[0]!r}, which is not known here")
        dotted = plain.get("activation_function", "torch.nn.modules.activation.Tanh")
        activation = str(dotted).rpartition(".")[2]
        if activation not in ACTIVATIONS or dotted not in (_dotted(activation), f"torch.nn.{activation}"):
            raise self._refused(name, f"has the activation {dotted!r}; served are torch.nn's {', '.join(ACTIVATIONS)}")
        dense = self._checked(
            name,
            lambda: Dense(
                inputs=plain["in_features"],
                outputs=plain["out_features"],
                bias=plain.get("bias", True),
                activation=activation,
                residual=plain.get("use_residual", False),
            ),
        )
        weights = self._weights(place)
        shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
        if shapes != dense.shapes:
            raise self._refused(place, f"holds weights {shapes}; its config asks for {dense.shapes}")
        if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in weights.values()):
            raise self._refused(place, "holds NaN, infinity or weights that are no floating-point numbers")
        self._projections |= {f"{i}.{key}": tensor for key, tensor in weights.items()}
        return dense

    def _weights(self, place: str) -> dict[str, torch.Tensor]:
        folder = self._folder / place
        try:
            if (folder / "model.safetensors").is_file():
                return load_file(folder / "model.safetensors")
            plain = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        except (OSError, SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
            raise CheckpointError(f"the weights in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
        if not isinstance(plain, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in plain.values()):
            raise self._refused(f"{place}/pytorch_model.bin", "holds something else than tensors")
        return plain

    def _read_about(self, about: dict[str, Any]) -> None:
        prompts = about.get("prompts") or {}
        if not isinstance(prompts, dict):
            raise self._refused(_ABOUT, "has prompts that are no object")
        self._told |= {
            "prompts": _SAVED_WITHOUT_PROMPTS | {name: text or "" for name, text in prompts.items()},
            "default_prompt": about.get("default_prompt_name"),
            "similarity": about.get("similarity_fn_name"),
            "dimensions": about.get("truncate_dim"),
        }

    def _checked(self, name: str, make: Callable[[], T]) -> T:
        try:
            return make()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise self._refused(name, f"{'.'.join(map(str, first['loc'])) or 'as a whole'}: {first['msg']}") from error
        except KeyError as error:
            raise self._refused(name, f"lacks {error}") from error

    def _json(self, name: str) -> dict[str, Any]:
        plain = self._parsed(name)
        if not isinstance(plain, dict):
            raise self._refused(name, "is no object")
        return plain

    def _parsed(self, name: str) -> Any:
        try:
            return json.loads((self._folder / name).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self._folder}/{name} cannot be read: {error}") from error

    def _refused(self, name: str, found: str) -> CheckpointError:
        return CheckpointError(
            f"{self._folder / name} {found}. This is not served: the embeddings would differ from those of "
            f"SentenceTransformer. Save the model without it, or remove {MODULES} and the modules' folders to use the "
            "weights alone"
        )


def _class_of(reference: Any) -> str | None:
    """``sentence_transformers.models.Pooling`` -> ``Pooling``; None for a class that is not the package's own."""
    if not isinstance(reference, str) or not reference.startswith(_PACKAGE):
        return None
    return reference.rpartition(".")[2]


def _dotted(activation: str) -> str:
    """An activation's full name in torch, for example ``torch.nn.modules.activation.Tanh``."""
    found = getattr(nn, activation)
    return f"{found.__module__}.{found.__qualname__}"


def _pooling_file(embedding: Embedding, width: int) -> dict[str, Any]:
    """The content of the Pooling's file: if possible in the form that all versions read, else that of version 6."""
    if tuple(mode for mode in _OLD_POOLING.values() if mode in embedding.pooling) == embedding.pooling:
        modes = {key: mode in embedding.pooling for key, mode in _OLD_POOLING.items()}
        return {"word_embedding_dimension": width, **modes}
    names = ["lasttoken" if mode == "last" else mode for mode in embedding.pooling]
    return {"embedding_dimension": width, "pooling_mode": names}


def _module(i: int, kind: str, place: str) -> dict[str, Any]:
    return {"idx": i, "name": str(i), "path": place, "type": f"{_PACKAGE}models.{kind}"}


def _write_dense(place: Path, dense: Dense, i: int, projections: Mapping[str, torch.Tensor]) -> None:
    _write(
        place / "config.json",
        in_features=dense.inputs,
        out_features=dense.outputs,
        bias=dense.bias,
        activation_function=_dotted(dense.activation),
        **({"use_residual": True} if dense.residual else {}),
    )
    save_file({name: projections[f"{i}.{name}"].contiguous() for name in dense.shapes}, place / "model.safetensors")


def _write(path: Path, **content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
