"""KEN: prune fine-tuned transformers to the parameters that matter, and inject them into one resident base.

Names are imported on first use, so that a program which only needs an error class or a setting does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ken_core.version import __version__

if TYPE_CHECKING:
    from ken_core.adapters import import_peft
    from ken_core.arithmetic import combine
    from ken_core.calibration import Calibrated, best_within, calibrate
    from ken_core.checkpoint import Checkpoint, open_base, open_tuned, wrap
    from ken_core.container import DeltaFile, open_file
    from ken_core.delta import Delta, apply, merge
    from ken_core.deltafile import load, write
    from ken_core.errors import (
        BaseMismatchError,
        CalibrationError,
        CheckpointChangedError,
        CheckpointError,
        ConfigMismatchError,
        DataError,
        DeltaFormatError,
        ExchangeError,
        KenError,
        MergeError,
        OutputError,
        PoisonedError,
        SelectionError,
    )
    from ken_core.extraction import Extraction, extract
    from ken_core.fingerprint import Fingerprint
    from ken_core.heads import graft
    from ken_core.judges import Judges, judges_for
    from ken_core.merge_parts import Part
    from ken_core.merge_recipe import MergeRecipe
    from ken_core.resident import Attached, ResidentModel
    from ken_core.selection import Budget, Selection, select
    from ken_core.tensor_filter import PRESETS, TensorFilter

_HOME = {
    "Attached": "ken_core.resident",
    "BaseMismatchError": "ken_core.errors",
    "Budget": "ken_core.selection",
    "Calibrated": "ken_core.calibration",
    "CalibrationError": "ken_core.errors",
    "Checkpoint": "ken_core.checkpoint",
    "CheckpointChangedError": "ken_core.errors",
    "CheckpointError": "ken_core.errors",
    "ConfigMismatchError": "ken_core.errors",
    "DataError": "ken_core.errors",
    "Delta": "ken_core.delta",
    "DeltaFile": "ken_core.container",
    "DeltaFormatError": "ken_core.errors",
    "ExchangeError": "ken_core.errors",
    "Extraction": "ken_core.extraction",
    "Fingerprint": "ken_core.fingerprint",
    "Judges": "ken_core.judges",
    "KenError": "ken_core.errors",
    "MergeError": "ken_core.errors",
    "MergeRecipe": "ken_core.merge_recipe",
    "OutputError": "ken_core.errors",
    "PRESETS": "ken_core.tensor_filter",
    "Part": "ken_core.merge_parts",
    "PoisonedError": "ken_core.errors",
    "ResidentModel": "ken_core.resident",
    "Selection": "ken_core.selection",
    "SelectionError": "ken_core.errors",
    "TensorFilter": "ken_core.tensor_filter",
    "apply": "ken_core.delta",
    "best_within": "ken_core.calibration",
    "calibrate": "ken_core.calibration",
    "combine": "ken_core.arithmetic",
    "extract": "ken_core.extraction",
    "graft": "ken_core.heads",
    "import_peft": "ken_core.adapters",
    "judges_for": "ken_core.judges",
    "load": "ken_core.deltafile",
    "merge": "ken_core.delta",
    "open_base": "ken_core.checkpoint",
    "open_file": "ken_core.container",
    "open_tuned": "ken_core.checkpoint",
    "select": "ken_core.selection",
    "wrap": "ken_core.checkpoint",
    "write": "ken_core.deltafile",
}

__all__ = [
    "PRESETS",
    "Attached",
    "BaseMismatchError",
    "Budget",
    "Calibrated",
    "CalibrationError",
    "Checkpoint",
    "CheckpointChangedError",
    "CheckpointError",
    "ConfigMismatchError",
    "DataError",
    "Delta",
    "DeltaFile",
    "DeltaFormatError",
    "ExchangeError",
    "Extraction",
    "Fingerprint",
    "Judges",
    "KenError",
    "MergeError",
    "MergeRecipe",
    "OutputError",
    "Part",
    "PoisonedError",
    "ResidentModel",
    "Selection",
    "SelectionError",
    "TensorFilter",
    "__version__",
    "apply",
    "best_within",
    "calibrate",
    "combine",
    "extract",
    "graft",
    "import_peft",
    "judges_for",
    "load",
    "merge",
    "open_base",
    "open_file",
    "open_tuned",
    "select",
    "wrap",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ken_core' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
