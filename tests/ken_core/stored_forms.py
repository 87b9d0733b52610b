"""The forms in which a checkpoint's weights may lie in its folder. Each copies a folder and writes the weights anew."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from ken_core.checkpoint import open_tuned


def without_weights(folder: Path, out: Path) -> dict[str, torch.Tensor]:
    """Copy everything but the weights, and return these as torch saves them: tied ones under each of their names."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    return dict(open_tuned(str(folder)).model.state_dict())


def one_pickle(folder: Path, out: Path) -> None:
    torch.save(OrderedDict(without_weights(folder, out)), out / "pytorch_model.bin")


def one_old_pickle(folder: Path, out: Path) -> None:
    """Write the weights as torch did before 1.6: not as a zip file."""
    torch.save(without_weights(folder, out), out / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def sharded_pickles(folder: Path, out: Path) -> None:
    tensors = without_weights(folder, out)
    shards = {f"pytorch_model-{i + 1:05}-of-00003.bin": sorted(tensors)[i::3] for i in range(3)}
    for file, names in shards.items():
        torch.save({name: tensors[name] for name in names}, out / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (out / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def sharded_safetensors(folder: Path, out: Path) -> None:
    """Write the weights as transformers writes large checkpoints: in shards with an index."""
    without_weights(folder, out)
    open_tuned(str(folder)).model.save_pretrained(out, max_shard_size="20KB")
    assert len(list(out.glob("*.safetensors"))) > 2


FORMS: dict[str, Callable[[Path, Path], None]] = {
    "sharded-safetensors": sharded_safetensors,
    "one-pickle": one_pickle,
    "one-old-pickle": one_old_pickle,
    "sharded-pickles": sharded_pickles,
}
PICKLES = [form for form in FORMS if "pickle" in form]
