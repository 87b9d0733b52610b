"""KEN: prune fine-tuned transformers to the parameters that matter, and inject them into one resident base."""

from ken_core.checkpoint import Checkpoint, open_base, open_tuned
from ken_core.delta import Delta, apply, extract, merge
from ken_core.deltafile import DeltaFile
from ken_core.errors import (
    BaseMismatchError,
    CheckpointError,
    ConfigMismatchError,
    DeltaFormatError,
    ExchangeError,
    KenError,
    PoisonedError,
    SelectionError,
)
from ken_core.fingerprint import Fingerprint, fingerprint
from ken_core.heads import graft
from ken_core.resident import Attached, ResidentModel
from ken_core.selection import Budget, Selection, select

__all__ = [
    "Attached",
    "BaseMismatchError",
    "Budget",
    "Checkpoint",
    "CheckpointError",
    "ConfigMismatchError",
    "Delta",
    "DeltaFile",
    "DeltaFormatError",
    "ExchangeError",
    "Fingerprint",
    "KenError",
    "PoisonedError",
    "ResidentModel",
    "Selection",
    "SelectionError",
    "apply",
    "extract",
    "fingerprint",
    "graft",
    "merge",
    "open_base",
    "open_tuned",
    "select",
]
