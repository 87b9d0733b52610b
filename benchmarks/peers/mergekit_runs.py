"""Merges by mergekit of whole checkpoints, in its own environment.

Its command `mergekit-pytorch` merges files of tensors by their names. Its main command knows model classes, and version
0.1.5 ends with a TypeError on a BERT.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.peers.environments import MERGEKIT
from benchmarks.peers.process import PeerError


@dataclass(frozen=True)
class Mergekit:
    """An installed mergekit, and the files that it merges.

    Attributes:
        base: the base's tensors, as safetensors.
        tuned: those of the fine-tunes' backbones.
    """

    python: Path
    base: Path
    tuned: Sequence[Path]

    @property
    def versions(self) -> str:
        return MERGEKIT.versions(self.python)

    def merged(
        self, method: str, parameters: Mapping[str, float], options: Mapping[str, bool], folder: Path
    ) -> dict[str, torch.Tensor]:
        """The merged tensors.

        Args:
            parameters: of each fine-tune, such as its weight.
            options: of the method, such as whether it normalises.
            folder: an empty folder for the result.

        Raises:
            PeerError: mergekit failed.
        """
        config = {
            "merge_method": method,
            "base_model": str(self.base),
            "models": [{"model": str(file), "parameters": dict(parameters)} for file in self.tuned],
            "parameters": dict(options),
            "dtype": "float32",
        }
        described = folder / "config.yml"
        described.write_text(json.dumps(config))  # JSON is YAML
        command = [self.python.parent / "mergekit-pytorch", described, folder / "out", "--quiet", "--random-seed", "0"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PeerError(f"mergekit failed with {config}:\n{done.stderr[-1500:]}")
        return load_file(folder / "out" / "model.safetensors")
